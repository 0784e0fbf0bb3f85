"""A large block as pieces of bounded size, so that what a step allocates does not grow with the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def flat(dense: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory, as a view."""
    if dense.dim() == 1:
        return dense
    return dense.view(-1) if dense.is_contiguous() else dense.as_strided((dense.numel(),), (1,))


def same_order(*tensors: Tensor | None) -> bool:
    """True if all lie in memory without gaps and in one order: element i of one is that of all."""
    given = [tensor for tensor in tensors if tensor is not None]
    if all(tensor.is_contiguous() for tensor in given):
        return True
    first = given[0]
    dense = any(
        first.is_contiguous(memory_format=order)
        for order, dim in ((torch.channels_last, 4), (torch.channels_last_3d, 5))
        if first.dim() == dim
    )
    return dense and all(tensor.stride() == first.stride() for tensor in given)


def check_shapes(*tensors: Tensor | None) -> None:
    """Raise unless all are of one shape: operations may broadcast, kernels write beyond the end of one."""
    shapes = {tuple(tensor.shape) for tensor in tensors if tensor is not None}
    if len(shapes) > 1:
        raise RuntimeError(f"a parameter, its gradient and its momentum have the shapes {shapes}")


def pieces(size: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Views of `size` elements of each, in memory order; where the orders differ, the whole. None stays."""
    first = tensors[0]
    assert first is not None
    check_shapes(*tensors)
    if first.numel() <= size or not same_order(*tensors):
        yield tensors
        return
    count = -(-first.numel() // size)
    yield from zip(
        *((None,) * count if t is None else torch.split(flat(t), size) for t in tensors), strict=True
    )


def pieces_by_index(size: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """`size` elements of each, row after row. None stays.

    Of a contiguous tensor a piece is a view, of another a copy, which `put_back` writes to it.
    """
    first = tensors[0]
    assert first is not None
    check_shapes(*tensors)
    count = first.numel()
    for begin in range(0, count, size):
        end = min(begin + size, count)
        yield tuple(None if tensor is None else _taken(tensor, begin, end) for tensor in tensors)


def put_back(piece: Tensor, whole: Tensor, begin: int) -> None:
    """Write a piece of `pieces_by_index`, if it is a copy, to `whole`, from its element number `begin` on."""
    if not whole.is_contiguous():
        for box, part in _pairs(whole, piece.view(-1), begin):
            box.copy_(part)


def _taken(whole: Tensor, begin: int, end: int) -> Tensor:
    if end - begin == whole.numel():
        return whole.contiguous()
    if whole.is_contiguous():
        return whole.view(-1)[begin:end]
    piece = whole.new_empty(end - begin)
    for box, part in _pairs(whole, piece, begin):
        # A matrix first as it lies: torch transposes it six times as fast when it has no gaps.
        part.copy_(box.clone() if box.dim() == 2 else box)
    return piece


def _pairs(whole: Tensor, piece: Tensor, begin: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of `whole` that cover its elements from number `begin` on, each beside that part of `piece`."""
    row = whole.numel() // len(whole)
    while len(piece):
        number, within = divmod(begin, row)
        rows = len(piece) // row
        if within == 0 and rows:
            taken = rows * row
            part = piece[:taken]
            yield whole[number : number + rows], part.view(rows, *whole.shape[1:])
        else:  # a part of one row
            taken = min(row - within, len(piece))
            yield from _pairs(whole[number], piece[:taken], within)
        begin, piece = begin + taken, piece[taken:]
