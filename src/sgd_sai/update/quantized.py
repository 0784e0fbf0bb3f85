"""Algorithm 1 on momenta and parameters that are not rounded to nearest: the reference, widened.

A piece at a time is read into float32, moved by the for-loop, and written back in its few bits. The blocks of
a momentum in 8 bits follow the index of an element. A tensor that lies in memory in another order is copied
into that order, a piece at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sgd_sai.quantized import BLOCK, FewBits, Momentum, Momentum8, stored_in
from sgd_sai.rounding import Noise, Rounding, exactly, round_to
from sgd_sai.update import reference
from sgd_sai.update.pieces import pieces, pieces_by_index, put_back

# Elements at a time: about a cache on the CPU; enough to fill a GPU elsewhere.
_PIECE = {"cpu": 1024 * BLOCK}
_PIECE_ELSEWHERE = 16384 * BLOCK


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Momentum],
    scales: Sequence[float],
    *,
    roundings: Sequence[Rounding],
    step: int | Tensor,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """Move every parameter by one step, in place.

    Arguments as `reference.update`, and: `roundings` and `step`, see `round_to`.
    """
    for θ, g, m, G, rounding in zip(params, grads, momenta, scales, roundings, strict=True):
        size = _PIECE.get(θ.device.type, _PIECE_ELSEWHERE)
        for piece in pieces_of(size, θ, g, m, rounding):
            move(
                *piece, G, step,
                lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize,
            )  # fmt: skip


def move(
    θ: Tensor,
    g: Tensor,
    m: Momentum,
    rounding: Rounding,
    G: float,
    step: int | Tensor,
    **options: Any,
) -> None:
    """Move one piece, by the reference on float32."""
    exact = exactly(θ, rounding)
    m32 = m.read() if isinstance(m, FewBits) else m
    reference.update([exact], [g], [m32], [G], **options)
    if isinstance(m, FewBits) and m32 is not None:
        m.write(m32, step)
    round_to(θ, exact, rounding, step)


def pieces_of(
    size: int, θ: Tensor, g: Tensor, m: Momentum, rounding: Rounding
) -> Iterator[tuple[Tensor, Tensor, Momentum, Any]]:
    """Pieces of a block, of `size` elements, a multiple of 256; those that are copies are put back."""
    stored, _ = stored_in(m)
    tensors: Any = θ, g, stored, rounding if isinstance(rounding, Tensor) else None
    contiguous = all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    by_index = isinstance(m, Momentum8) and not contiguous
    if torch.compiler.is_compiling():
        # Compiled, a step has no temporaries to bound, but copies the whole for each piece that it writes.
        # And the blocks of 256 lie in one dimension; in several it would divide for each element.
        size = θ.numel()
        if contiguous:
            tensors = tuple(None if tensor is None else tensor.view(-1) for tensor in tensors)
    elif by_index:  # whole rows where it can be: they take the fewest copies
        rows = math.lcm(θ[0].numel(), BLOCK)
        size = size // rows * rows or size
    begin = 0
    for θ_, g_, m_, c_ in (pieces_by_index if by_index else pieces)(size, *tensors):
        momentum = m.piece(m_, begin) if isinstance(m, FewBits) else m_
        if isinstance(rounding, Noise):
            c_ = rounding.from_element(begin)
        yield θ_, g_, momentum, c_
        if by_index:
            put_back(θ_, θ, begin)
            if isinstance(rounding, Tensor):
                put_back(c_, rounding, begin)
        begin += θ_.numel()
