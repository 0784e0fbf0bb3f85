"""The ground truth: Algorithm 1 as a for-loop, in the paper's notation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor | None],
    scales: Sequence[float],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """Move every parameter by one step, in place.

    Args:
        params: θ, real tensors of any floating dtype.
        grads: g, of θ's shape; never modified.
        momenta: m, of θ's shape, updated in place; None where momentum is 0, and always was. At a block's
            first step m holds the gradient already, so that m₁ = g₁.
        scales: G̃ᵢ, or the raw G_snrᵢ where the group is not normalised; 0 for a block without one.
        lr: η, a float or a 0-dim tensor.
        momentum: μ.
        weight_decay: λ, decoupled and scaled by η alone.
        maximize: ascend instead of descend.

    Arithmetic is done in float32 at least; only the result is rounded to θ's dtype.
    """
    η, μ, λ = lr, momentum, weight_decay
    for θ, g, m, G in zip(params, grads, momenta, scales, strict=True):
        wide = torch.promote_types(θ.dtype, torch.float32)
        g_t = -g.to(wide) if maximize else g.to(wide)
        if m is None:
            m_t = g_t
        else:
            m_t = torch.lerp(m.to(wide), g_t, 1 - μ)  # μ m + (1 − μ) g, and exactly g where m = g
            m.copy_(m_t)
        θ_t = θ.to(wide, copy=True) * (1 - λ * η)  # a copy, as autograd may need the old θ
        θ_t = θ_t - η * G * m_t
        θ.copy_(θ_t)
