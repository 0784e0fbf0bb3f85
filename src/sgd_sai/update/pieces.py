"""A large block as pieces of bounded size, so that what a step allocates does not grow with the model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Piece = tuple[Tensor, Tensor, Tensor | None]


def same_order(θ: Tensor, g: Tensor, m: Tensor | None) -> bool:
    """True if the three lie in memory without gaps and in one order: element i of one is that of all."""
    if θ.is_contiguous():
        return g.is_contiguous() and (m is None or m.is_contiguous())
    dense = any(
        θ.is_contiguous(memory_format=order)
        for order, dim in ((torch.channels_last, 4), (torch.channels_last_3d, 5))
        if θ.dim() == dim
    )
    return dense and θ.stride() == g.stride() and (m is None or θ.stride() == m.stride())


def pieces(θ: Tensor, g: Tensor, m: Tensor | None, size: int) -> Iterator[Piece]:
    """Views of `size` elements each, in the order of memory; a block of mixed orders is one piece."""
    if θ.numel() <= size or not same_order(θ, g, m):
        yield θ, g, m
        return
    θs, gs = torch.split(_flat(θ), size), torch.split(_flat(g), size)
    ms: tuple[Tensor | None, ...] = (None,) * len(θs) if m is None else torch.split(_flat(m), size)
    yield from zip(θs, gs, ms, strict=True)


def _flat(dense: Tensor) -> Tensor:
    return dense.view(-1) if dense.is_contiguous() else dense.as_strided((dense.numel(),), (1,))
