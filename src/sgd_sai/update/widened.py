"""Algorithm 1 on the CPU where θ, g or m has fewer bits than the arithmetic: what `quantized` does, faster.

Momenta are bit for bit those of `quantized.update`; so is θ, if it is rounded otherwise than to nearest. A
piece at a time goes through buffers of float32 that all pieces share: new ones would be new pages of memory,
which the system has to clear first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sgd_sai.quantized import BLOCK, FewBits, Momentum, Momentum8, Momentum16, stored_in
from sgd_sai.rounding import (
    PERIOD,
    Noise,
    Rounding,
    bits_of_momentum,
    exactly,
    random_bits,
    round_to,
    uniform,
)
from sgd_sai.update import quantized
from sgd_sai.update.fused_sgd import decay_of, descend
from sgd_sai.update.pieces import flat, same_order

# Elements at a time: enough that the calls cost little, few enough that the buffers stay in the last-level
# cache. Rounding otherwise than to nearest takes several more, and a fourth of the elements.
_PIECE = 4096 * BLOCK


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
    """Move every parameter by one step, in place. Arguments as `quantized.update`."""
    options: Any = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
    buffers = _Buffers()
    for θ, g, m, G, rounding in zip(params, grads, momenta, scales, roundings, strict=True):
        torch.autograd.graph.increment_version(θ)  # the kernel does not: autograd would not notice its writes
        size = _PIECE if rounding is None and not isinstance(m, FewBits) else _PIECE // 4
        for piece in quantized.pieces_of(size, θ, g, m, rounding):
            if _in_one_order(*piece) and not (isinstance(m, FewBits) and θ.dtype is torch.float64):
                _move(*piece, G, step, buffers, **options)
            else:
                quantized.move(*piece, G, step, **options)


def _move(
    θ: Tensor,
    g: Tensor,
    m: Momentum,
    rounding: Rounding,
    G: float,
    step: int | Tensor,
    buffers: _Buffers,
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """One step of a piece whose tensors lie in memory in one order."""
    η, μ, λ = lr, momentum, weight_decay
    wide = torch.promote_types(θ.dtype, torch.float32)
    count = θ.numel()
    θ, g = flat(θ), flat(g)
    exact = buffers.widened(0, θ, wide)
    if isinstance(rounding, Tensor):
        rounding = flat(rounding)
        if rounding.dtype is torch.int16:
            exact.view(torch.int32).add_(rounding)
            if not math.isfinite(torch.dot(exact, exact)):  # see `exactly`, which takes four times as long
                exact.copy_(exactly(θ, rounding))
        else:
            exact.add_(rounding)
    m_t = g = buffers.widened(1, g, wide)
    if maximize:
        m_t = g = torch.neg(g, out=buffers.of(1, g.numel(), wide))
    filled = -(-count // BLOCK) * BLOCK
    if isinstance(m, FewBits):
        m = m.piece(flat(m.stored), 0)
    if isinstance(m, Momentum8):
        m_t = m.read_in_place(buffers.of(2, filled), buffers.of(3, filled)).lerp_(g, 1 - μ)
    elif m is not None:
        m_t = buffers.widened(2, m.stored if isinstance(m, Momentum16) else flat(m), wide).lerp_(g, 1 - μ)
    if rounding is None:
        descend(exact, m_t, float(η) * G, decay_of(λ * float(η), wide))
    else:  # the reference to the last bit, or compensations and drawn bits would differ from way to way
        exact.mul_(1 - λ * η)
        exact.sub_(torch.mul(m_t, η * G, out=buffers.of(3, count, wide)))
    if isinstance(m, Momentum8):
        drawn = buffers.drawn(uniform, m.noise, step, filled)
        m.write_in_place(buffers.of(2, filled), buffers.of(1, filled), buffers.of(3, filled), drawn)
    elif isinstance(m, Momentum16):
        m.write_in_place(m_t, buffers.drawn(bits_of_momentum, m.noise, step, count))
    elif m is not None and m.dtype is not wide:
        flat(m).copy_(m_t)
    bits = buffers.drawn(random_bits, rounding, step, count) if isinstance(rounding, Noise) else None
    round_to(θ, exact, rounding, step, bits)


class _Buffers:
    """Room for the pieces of a step, by its place in the arithmetic and its dtype; and its random numbers."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, torch.dtype], Tensor] = {}
        self._drawn: dict[Callable[..., Tensor], Tensor] = {}

    def drawn(self, draw: Callable[..., Tensor], noise: Noise, step: int | Tensor, size: int) -> Tensor:
        """The numbers that `draw`, a function of `rounding`, gives for the elements of a piece."""
        held = self._drawn.get(draw)
        if held is None:
            held = self._drawn[draw] = draw(torch.empty(PERIOD, device="cpu"), Noise(0), step)
        if held.numel() < noise.place + size:
            held = self._drawn[draw] = held[:PERIOD].repeat(-(-size // PERIOD) + 1)
        return held[noise.place : noise.place + size]

    def of(self, place: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """What the place holds, or nothing in particular."""
        held = self._held.get((place, dtype))
        if held is None or held.numel() < size:
            held = self._held[place, dtype] = torch.empty(size, dtype=dtype, device="cpu")
        return held if held.numel() == size else held[:size]

    def widened(self, place: int, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor itself if it has the dtype, else a copy in the buffer of the place."""
        return tensor if tensor.dtype is dtype else self.of(place, tensor.numel(), dtype).copy_(tensor)


def _in_one_order(θ: Tensor, g: Tensor, m: Momentum, rounding: Rounding) -> bool:
    stored, _ = stored_in(m)
    return same_order(θ, g, stored, rounding if isinstance(rounding, Tensor) else None)
