"""Momentum in 8 bits.

It is quantized block-wise: every 256 elements share a float32 a = max |m|. The blocks follow the index of an
element, row after row, not its place in memory: many checkpoint formats drop strides. The code of an element
is q = round(127 · √(|m|/a)), with the sign of m: a square law, whose steps shrink towards zero as the momenta
in a block do. Measured on an EMA of noisy gradients whose sizes spread over a factor of fifty
(tests/test_quantized.py), it is 1.8 % off, a linear code 4.2 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgd_sai.distributed.layout import local_parts
from sgd_sai.gsnr import as_real

#: Elements that share a scale.
BLOCK = 256
#: Tensors of fewer elements keep their momentum in float32: they are few bytes, and often sensitive.
SMALLEST = 4096

_LEVELS = 127
_TINY = torch.finfo(torch.float32).tiny  # has a finite reciprocal


@dataclass(slots=True)
class Momentum8:
    """A momentum in 8 bits: `codes`, contiguous int8 of the block's shape; `absmax`, float32, one for 256."""

    codes: Tensor
    absmax: Tensor

    def read(self) -> Tensor:
        """The momentum as float32, contiguous, in the shape of the codes."""
        codes = _in_blocks(self.codes.float())
        return self._shaped(codes * codes.abs() * (self.absmax / _LEVELS**2).unsqueeze(1))

    def write(self, momentum: Tensor) -> None:
        """Encode `momentum`, of the codes' shape, in whatever order it lies in memory."""
        m = _in_blocks(momentum.float().contiguous())
        torch.amax(m.abs(), dim=1, out=self.absmax)
        relative = m.abs().mul_(self.absmax.clamp_min(_TINY).reciprocal_().unsqueeze(1))
        self.codes.copy_(self._shaped(relative.sqrt_().mul_(_LEVELS).round_().mul_(m.sign())))

    def read_in_place(self, out: Tensor, spare: Tensor) -> Tensor:
        """`read`, bit for bit, of codes in one dimension; on the CPU in half the time.

        Args:
            out, spare: float32, as many as the codes in whole blocks. The momentum is written to the first.
        """
        count = self.codes.numel()
        # q |q| as integers of 16 bits: exact, and half the bytes of float32.
        square, size = spare.view(torch.int16).view(2, -1)[:, :count]
        square.copy_(self.codes)
        out[:count].copy_(square.mul_(torch.abs(square, out=size)))
        out[count:].zero_()
        _in_blocks(out).mul_((self.absmax / _LEVELS**2).unsqueeze(1))
        return out[:count]

    def write_in_place(self, m: Tensor, spare: Tensor) -> None:
        """`write`, bit for bit, of what `read_in_place` has filled; afterwards that is lost."""
        rows = _in_blocks(torch.abs(m, out=spare))
        torch.amax(rows, dim=1, out=self.absmax)
        rows.mul_(self.absmax.clamp_min(_TINY).reciprocal_().unsqueeze(1))
        # 127 and the sign in one pass, as 0 + 127 √ sign.
        zero = torch.zeros((), device=m.device)
        torch.addcmul(zero, spare.sqrt_(), m.sign_(), value=_LEVELS, out=spare)
        self.codes.copy_(spare.round_()[: self.codes.numel()])

    def _shaped(self, blocks: Tensor) -> Tensor:
        return blocks.view(-1)[: self.codes.numel()].view(self.codes.shape)

    def parts(self, n: int) -> Iterator[Momentum8]:
        """The n equal parts along dim 0, each of which has its own scales."""
        for codes, absmax in zip(local_parts(self.codes, n), local_parts(self.absmax, n), strict=True):
            yield Momentum8(codes, absmax)


#: The momentum of a block, as an update takes it; None where momentum is 0.
Momentum = Tensor | Momentum8 | None


def fits_8_bits(param: Tensor) -> bool:
    """True if a parameter is large enough for a momentum in 8 bits; see `SMALLEST`."""
    return as_real(param).numel() >= SMALLEST


def create_momentum8(state: dict[str, Any], param: Tensor, split: int) -> None:
    """Add a momentum of zeros in 8 bits to a state; each of the `split` parts has scales of its own."""
    real = as_real(param)
    scales = split * -(-real.numel() // split // BLOCK)
    codes = torch.zeros_like(real, dtype=torch.int8, memory_format=torch.contiguous_format)
    absmax = torch.zeros(scales, dtype=torch.float32, device=param.device)
    state.update(momentum_buffer=codes, momentum_absmax=absmax)  # both or, if there is no memory, neither


def block_by_index(state: dict[str, Any], *, parts: int) -> None:
    """Encode a momentum anew whose blocks follow the order of memory, as they once did.

    Codes that are not contiguous are such. The new blocks have other scales: elements are rounded once more.
    """
    codes = state.get("momentum_buffer")
    if codes is None or codes.dtype != torch.int8 or codes.is_contiguous():
        return
    state["momentum_buffer"] = torch.empty_like(codes, memory_format=torch.contiguous_format)
    if parts > 1:  # whose blocks have always followed the index
        state["momentum_buffer"].copy_(codes)
        return
    dims = sorted(range(codes.dim()), key=codes.stride, reverse=True)  # from the slowest on in memory
    meant = torch.empty_like(state["momentum_buffer"], dtype=torch.float32)
    meant.permute(dims).copy_(Momentum8(codes.permute(dims).contiguous(), state["momentum_absmax"]).read())
    state["momentum_absmax"] = torch.empty_like(state["momentum_absmax"])
    Momentum8(state["momentum_buffer"], state["momentum_absmax"]).write(meant)


def _in_blocks(contiguous: Tensor) -> Tensor:
    """256 elements a row, the last row filled up with zeros; a view where it is full."""
    if contiguous.numel() % BLOCK == 0:
        return contiguous.view(-1, BLOCK)
    return torch.nn.functional.pad(contiguous.view(-1), (0, -contiguous.numel() % BLOCK)).view(-1, BLOCK)
