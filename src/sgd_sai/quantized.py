"""Momentum in 8 bits.

It is quantized block-wise: every 256 elements share a float32 a = max |m|. The blocks follow the index of an
element, row after row, not its place in memory: many checkpoint formats drop strides. The code of an element
is q = round(127 · √(|m|/a)), with the sign of m: a square law, whose steps shrink towards zero as the momenta
in a block do. Measured on an EMA of noisy gradients whose sizes spread over a factor of fifty
(tests/test_quantized.py), it is 1.8 % off, a linear code 4.2 %.

Where 256 divides the last dim, no block crosses a row. Then the scales have the shape of the codes but for
the last dim, and both can be cut over ranks alike, along any other dim: each block stays with its scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgd_sai.distributed.layout import cuts, gathered, is_spread, local, local_parts, spread_as
from sgd_sai.gsnr import as_real

#: Elements that share a scale.
BLOCK = 256
#: Tensors of fewer elements keep their momentum in float32: they are few bytes, and often sensitive.
SMALLEST = 4096
#: In place of the scales of a momentum that could have 8 bits, but has more; in a saved state, of each scale.
#: torch.distributed.checkpoint casts what it loads to the dtype that it finds: this tells numbers from codes.
WIDE = -1.0

_LEVELS = 127
_TINY = torch.finfo(torch.float32).tiny  # has a finite reciprocal


@dataclass(slots=True)
class Momentum8:
    """A momentum in 8 bits: `codes`, int8 of the block's shape; `absmax`, float32, one for 256 of them.

    Both are contiguous. The shape of `absmax` does not matter.
    """

    codes: Tensor
    absmax: Tensor

    def read(self) -> Tensor:
        """The momentum as float32, contiguous, in the shape of the codes."""
        codes = _in_blocks(self.codes.float())
        return self._shaped(codes * codes.abs() * (self.flat_absmax / _LEVELS**2).unsqueeze(1))

    def write(self, momentum: Tensor) -> None:
        """Encode `momentum`, of the codes' shape, in whatever order it lies in memory."""
        m = _in_blocks(momentum.float().contiguous())
        torch.amax(m.abs(), dim=1, out=self.flat_absmax)
        relative = m.abs().mul_(self.flat_absmax.clamp_min(_TINY).reciprocal_().unsqueeze(1))
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
        _in_blocks(out).mul_((self.flat_absmax / _LEVELS**2).unsqueeze(1))
        return out[:count]

    def write_in_place(self, m: Tensor, spare: Tensor) -> None:
        """`write`, bit for bit, of what `read_in_place` has filled; afterwards that is lost."""
        rows = _in_blocks(torch.abs(m, out=spare))
        torch.amax(rows, dim=1, out=self.flat_absmax)
        rows.mul_(self.flat_absmax.clamp_min(_TINY).reciprocal_().unsqueeze(1))
        # 127 and the sign in one pass, as 0 + 127 √ sign.
        zero = torch.zeros((), device=m.device)
        torch.addcmul(zero, spare.sqrt_(), m.sign_(), value=_LEVELS, out=spare)
        self.codes.copy_(spare.round_()[: self.codes.numel()])

    @property
    def flat_absmax(self) -> Tensor:
        """`absmax` as a view of one dim."""
        return self.absmax.view(-1)

    def _shaped(self, blocks: Tensor) -> Tensor:
        return blocks.view(-1)[: self.codes.numel()].view(self.codes.shape)

    def parts(self, n: int) -> Iterator[Momentum8]:
        """The n equal parts along dim 0, each of which has its own scales."""
        for codes, absmax in zip(local_parts(self.codes, n), local_parts(self.absmax, n), strict=True):
            yield Momentum8(codes, absmax)


#: The momentum of a block, as an update takes it; None where momentum is 0.
Momentum = Tensor | Momentum8 | None


def real_shape(param: Tensor) -> tuple[int, ...]:
    """The shape of a parameter as reals, and so that of its codes."""
    return (*param.shape, 2) if param.is_complex() else tuple(param.shape)


def is_large(param: Tensor) -> bool:
    """True if a parameter is large enough for a momentum in 8 bits; see `SMALLEST`."""
    return math.prod(real_shape(param)) >= SMALLEST


def fits_8_bits(param: Tensor) -> bool:
    """True if a parameter is large enough for a momentum in 8 bits, and no rank has a part of a block."""
    return is_large(param) and cut_between_blocks(real_shape(param), cuts(param))


def cut_between_blocks(shape: Sequence[int], cuts: Mapping[int, int]) -> bool:
    """True if no shard of a tensor ends within a block of 256.

    It depends on the number of ranks only where they cut the last dim of a matrix, as a row-parallel layer
    does. So a tensor of one dim counts as cut within blocks: else some numbers of ranks could not load what
    others have saved.

    Args:
        shape: of the whole, as reals.
        cuts: see `layout.cuts`.
    """
    last = len(shape) - 1
    return not cuts or (last > 0 and shape[last] % (BLOCK * cuts.get(last, 1)) == 0)


def absmax_shape(shape: Sequence[int], split: int) -> tuple[int, ...]:
    """The shape of the scales of codes: one dim where blocks cross rows. No two `split` parts share one."""
    if len(shape) > 1 and shape[-1] % BLOCK == 0:
        return (*shape[:-1], shape[-1] // BLOCK)
    return (split * -(-math.prod(shape) // split // BLOCK),)


def absmax_of(param: Tensor, split: int, value: float) -> Tensor:
    """Scales that are all `value`: cut as the parameter is; where that cuts blocks, whole on each rank."""
    shape = absmax_shape(real_shape(param), split)
    whole = not cut_between_blocks(real_shape(param), cuts(param))
    here = shape if whole else absmax_shape(as_real(local(param)).shape, split)
    absmax = torch.full(here, value, dtype=torch.float32, device=param.device)
    return spread_as(param, absmax, shape, whole=whole) if is_spread(param) else absmax


def absmax_in(state: Mapping[str, Any]) -> Tensor | None:
    """The scales in a parameter's state; None beside a momentum of more bits."""
    absmax: Tensor | float | None = state.get("momentum_absmax")
    return None if isinstance(absmax, float) else absmax


def create_momentum8(state: dict[str, Any], param: Tensor, split: int) -> None:
    """Add a momentum of zeros in 8 bits to a state; each of the `split` parts has scales of its own."""
    codes = torch.zeros(as_real(local(param)).shape, dtype=torch.int8, device=param.device)
    if is_spread(param):
        codes = spread_as(param, codes, real_shape(param))
    absmax = absmax_of(param, split, 0.0)
    state.update(momentum_buffer=codes, momentum_absmax=absmax)  # both or, if there is no memory, neither


def absmax_in_shape(absmax: Tensor, param: Tensor, split: int) -> Tensor:
    """Scales as `absmax_shape` has them; once they always had one dim. Of DTensors every rank must ask."""
    shape = absmax_shape(real_shape(param), split)
    flat = len(shape) > 1 and absmax.shape == (math.prod(shape),)
    return gathered(absmax).reshape(shape) if flat else absmax


def read_whole(codes: Tensor, absmax: Tensor, split: int, *, is_complex: bool) -> Tensor:
    """The momentum of a parameter in float32 from its codes, of whatever dtype; every rank must ask.

    Raises:
        ValueError: they are no codes.
    """
    whole = gathered(codes)
    momentum = Momentum8(whole.to(torch.int8).contiguous(), gathered(absmax).contiguous())
    if not torch.equal(momentum.codes.to(whole.dtype), whole.contiguous()):
        raise ValueError("holds 'momentum_absmax', but no momentum in 8 bits")
    read = torch.cat([part.read() for part in momentum.parts(split)])
    return torch.view_as_complex(read) if is_complex else read


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
