"""Algorithm 1 on momentum of 8 bits and parameters that are not rounded to nearest: the reference, widened.

A piece at a time is read into float32, moved by the for-loop, and written back in its few bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgd_sai.quantized import BLOCK, Momentum8
from sgd_sai.update import reference
from sgd_sai.update.pieces import pieces

# Elements at a time: about a cache on the CPU; enough to fill a GPU elsewhere.
_PIECE = {"cpu": 1024 * BLOCK}
_PIECE_ELSEWHERE = 16384 * BLOCK


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor | Momentum8 | None],
    scales: Sequence[float],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
    rounding: str,
    compensations: Sequence[Tensor | None],
) -> None:
    """Move every parameter by one step, in place.

    Arguments as `reference.update`, and: `rounding`, see `round_to`; `compensations`, of θ's shape
    and dtype, or None.
    """
    for θ, g, m, G, c in zip(params, grads, momenta, scales, compensations, strict=True):
        for θ_, g_, m_, c_ in _pieces(θ, g, m, c):
            θ32 = θ_.float() if c_ is None else θ_.float() + c_.float()
            m32 = m_.read() if isinstance(m_, Momentum8) else m_
            reference.update(
                [θ32], [g_], [m32], [G],
                lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize,
            )  # fmt: skip
            if isinstance(m_, Momentum8) and m32 is not None:
                m_.write(m32)
            round_to(θ_, θ32, rounding, c_)


def round_to(θ: Tensor, exact: Tensor, rounding: str, compensation: Tensor | None) -> None:
    """Write `exact`, float32, to θ, rounded as asked for.

    "stochastic": up or down with probabilities that make the mean right, with torch's default generator of
    the device. "kahan": to nearest, and what that lost goes to `compensation`, of θ's dtype, which the next
    step adds back.
    """
    if rounding == "stochastic" and θ.dtype == torch.bfloat16:
        # A bfloat16 is the upper half of a float32: add a random lower half, drop the lower half.
        noise = torch.randint_like(exact, 1 << 16, dtype=torch.int32)
        θ.copy_((exact.view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32))
        return
    θ.copy_(exact)
    if compensation is not None:
        compensation.copy_(exact - θ.float())


def _pieces(
    θ: Tensor, g: Tensor, m: Tensor | Momentum8 | None, c: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | Momentum8 | None, Tensor | None]]:
    size = _PIECE.get(θ.device.type, _PIECE_ELSEWHERE)
    if not isinstance(m, Momentum8):
        yield from pieces(size, θ, g, m, c)
        return
    begin = 0
    for θ_, g_, codes, c_ in pieces(size, θ, g, m.codes, c):
        end = begin + -(-codes.numel() // BLOCK)
        yield θ_, g_, Momentum8(codes, m.absmax[begin:end]), c_
        begin = end
