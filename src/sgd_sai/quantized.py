"""Momentum in 8 bits.

It is quantized block-wise: every 256 elements, in the order of memory, share a float32 a = max |m|. The
code of an element is q = round(127 · √(|m|/a)), with the sign of m: a square law, whose steps shrink towards
zero as the momenta in a block do. Measured on an EMA of noisy gradients whose sizes spread over a factor of
fifty (tests/test_quantized.py), it is 1.8 % off, a linear code 4.2 %.
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
    """A momentum in 8 bits: `codes`, int8 of the block's shape, dense; `absmax`, a float32 for each 256."""

    codes: Tensor
    absmax: Tensor

    def read(self) -> Tensor:
        """The momentum as float32, in the shape and the memory order of the codes."""
        codes = _in_blocks(self.codes.float())
        return _like(codes * codes.abs() * (self.absmax / _LEVELS**2).unsqueeze(1), self.codes)

    def write(self, momentum: Tensor) -> None:
        """Encode `momentum`, of the codes' shape."""
        m = _in_blocks(torch.empty_like(self.codes, dtype=torch.float32).copy_(momentum))
        torch.amax(m.abs(), dim=1, out=self.absmax)
        relative = m.abs().mul_(self.absmax.clamp_min(_TINY).reciprocal_().unsqueeze(1))
        self.codes.copy_(_like(relative.sqrt_().mul_(_LEVELS).round_().mul_(m.sign()), self.codes))

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
    order = torch.preserve_format if split == 1 else torch.contiguous_format
    scales = split * -(-real.numel() // split // BLOCK)
    codes = torch.zeros_like(real, dtype=torch.int8, memory_format=order)
    absmax = torch.zeros(scales, dtype=torch.float32, device=param.device)
    state.update(momentum_buffer=codes, momentum_absmax=absmax)  # both or, if there is no memory, neither


def flat(dense: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory, as a view."""
    return dense.view(-1) if dense.is_contiguous() else dense.as_strided((dense.numel(),), (1,))


def _in_blocks(dense: Tensor) -> Tensor:
    """In the order of memory, 256 a row, the last row filled up with zeros."""
    elements = flat(dense)
    return torch.nn.functional.pad(elements, (0, -elements.numel() % BLOCK)).view(-1, BLOCK)


def _like(blocks: Tensor, dense: Tensor) -> Tensor:
    """Rows of 256 in the shape and the memory order of a dense tensor."""
    elements = blocks.view(-1)[: dense.numel()]
    if dense.is_contiguous():
        return elements.view(dense.shape)
    # A copy: torch.compile cannot write to such a view.
    return elements.as_strided(dense.shape, dense.stride()).clone()
