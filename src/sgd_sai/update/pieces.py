"""A large block as pieces of bounded size, so that what a step allocates does not grow with the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sgd_sai.quantized import flat


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
