"""Algorithm 1 on momentum of 8 bits and parameters that are not rounded to nearest: the reference, widened.

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

from sgd_sai.quantized import BLOCK, Momentum, Momentum8
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
        for begin, θ_, g_, m_, rounding_ in _pieces(θ, g, m, rounding):
            exact = exactly(θ_, rounding_)
            m32 = m_.read() if isinstance(m_, Momentum8) else m_
            reference.update(
                [exact], [g_], [m32], [G],
                lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize,
            )  # fmt: skip
            if isinstance(m_, Momentum8) and m32 is not None:
                m_.write(m32)
            round_to(θ_, exact, rounding_, step)
            if isinstance(m, Momentum8):
                put_back(θ_, θ, begin)
                if isinstance(rounding, Tensor):
                    put_back(rounding_, rounding, begin)


def _pieces(
    θ: Tensor, g: Tensor, m: Momentum, rounding: Rounding
) -> Iterator[tuple[int, Tensor, Tensor, Momentum, Any]]:
    """Pieces of a block, each after the number of its first element."""
    size = _PIECE.get(θ.device.type, _PIECE_ELSEWHERE)
    codes = m.codes if isinstance(m, Momentum8) else m
    tensors = θ, g, codes, rounding if isinstance(rounding, Tensor) else None
    contiguous = all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    by_index = isinstance(m, Momentum8) and not contiguous
    if by_index and torch.compiler.is_compiling():  # copies of pieces would be hundreds of kernels to compile
        size = θ.numel()
    elif by_index:  # whole rows where it can be: they take the fewest copies
        rows = math.lcm(θ[0].numel(), BLOCK)
        size = size // rows * rows or size
    begin = 0
    for θ_, g_, m_, c_ in (pieces_by_index if by_index else pieces)(size, *tensors):
        momentum = m_
        if isinstance(m, Momentum8):
            first = begin // BLOCK
            momentum = Momentum8(m_, m.flat_absmax[first : first - (-m_.numel() // BLOCK)])
        if isinstance(rounding, Noise):
            c_ = Noise(rounding.number, rounding.first + begin)
        yield begin, θ_, g_, momentum, c_
        begin += θ_.numel()
