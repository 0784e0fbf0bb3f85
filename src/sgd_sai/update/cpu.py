"""Algorithm 1 on the CPU with torch's fused SGD kernel, in as few passes over memory as it allows.

In one pass that kernel computes  b ← μ b + (1 − τ)(g + ωθ);  θ ← θ − αb,  or θ ← θ − α(g + ωθ) without b.
Its decay ω is coupled: with a buffer it would enter the momentum. So a step with decay takes two,

    m ← lerp(m, g, 1 − μ)                                      read m, g; write m
    θ ← θ − ηG (m + (λ/G) θ)  =  θ (1 − λη) − ηG m             read m, θ; write θ

over pieces that stay in the last-level cache in between. Without decay the kernel does it all in one. Tensors
of fewer bits, or in different orders in memory, it does not take; `widened` converts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from sgd_sai.update import foreach, widened
from sgd_sai.update.fused_sgd import decay_of, descend, sgd
from sgd_sai.update.pieces import check_shapes, pieces, same_order

# Elements of θ that go through both passes at once: large enough that the calls cost nothing, small
# enough that m is still in the cache when the second pass reads it.
_PIECE = 1 << 20
# Up to here a tensor costs less than the call that updates it, or than to wake a thread for it.
_TINY = 1 << 13
# Dtypes that are as wide as the arithmetic.
_WIDE = (torch.float32, torch.float64)


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
    """Move every parameter by one step, in place. Arguments and arithmetic as `reference.update`."""
    η = float(lr)
    tiny: dict[torch.dtype, list[int]] = {}
    others: dict[bool, list[int]] = {}
    if momentum == 0:  # the kernel would write to no momentum
        momenta = _replaced(momenta, grads, maximize)
    kept = [m for m in momenta if m is not None]
    sizes = list(map(Tensor.numel, params))
    if sizes != list(map(Tensor.numel, grads)) or (kept and sizes != list(map(Tensor.numel, kept))):
        # The fused kernel trusts that they are alike, and would write beyond the end of a smaller one.
        raise RuntimeError("a parameter, its gradient and its momentum have different shapes")
    plain = _all_plain([*params, *grads, *kept])
    if plain and max(sizes) <= _TINY:  # there is nothing to sort
        decay = decay_of(weight_decay * η, params[0].dtype)
        _tiny(list(params), list(grads), kept, [η * G for G in scales], momentum, decay, maximize)
        return
    fusable = repeat(True) if plain else map(_fusable, params, grads, momenta)
    for i, (θ, size, fused) in enumerate(zip(params, sizes, fusable, strict=False)):
        if fused and size <= _TINY:
            tiny.setdefault(θ.dtype, []).append(i)
        elif fused:
            decay = decay_of(weight_decay * η, θ.dtype)
            _large(θ, grads[i], momenta[i], η * scales[i], momentum, decay, maximize)
        else:
            others.setdefault(size <= _TINY, []).append(i)
    for dtype, places in tiny.items():
        _tiny(
            [params[i] for i in places],
            [grads[i] for i in places],
            [m for i in places if (m := momenta[i]) is not None],
            [η * scales[i] for i in places],
            momentum,
            decay_of(weight_decay * η, dtype),
            maximize,
        )
    for are_tiny, places in others.items():
        columns = [[column[i] for i in places] for column in (params, grads, momenta, scales)]
        options: dict[str, Any] = {} if are_tiny else {"roundings": [None] * len(places), "step": 0}
        (foreach if are_tiny else widened).update(
            *columns, lr=η, momentum=momentum, weight_decay=weight_decay, maximize=maximize, **options
        )


def _replaced(momenta: Sequence[Tensor | None], grads: Sequence[Tensor], maximize: bool) -> list[None]:
    """m_t = g_t where there is an m; no momenta."""
    for m, g in zip(momenta, grads, strict=True):
        if m is not None:
            check_shapes(m, g)
            m.copy_(-g if maximize else g)
    return [None] * len(momenta)


def _large(θ: Tensor, g: Tensor, m: Tensor | None, ηG: float, μ: float, λη: float, maximize: bool) -> None:
    torch.autograd.graph.increment_version(θ)  # the kernel does not: autograd would not notice its writes
    if m is None:
        check_shapes(θ, g)
        descend(θ, g, ηG, λη, maximize)
    elif λη == 0:
        check_shapes(θ, g, m)
        sgd([θ], [g], [m], ηG, μ, 0.0, maximize)
    else:
        for θ_, g_, m_ in pieces(_PIECE, θ, g, m):
            m_.lerp_(-g_ if maximize else g_, 1 - μ)
            descend(θ_, m_, ηG, λη)


def _tiny(
    θs: list[Tensor],
    gs: list[Tensor],
    ms: list[Tensor],
    ηGs: list[float],
    μ: float,
    λη: float,
    maximize: bool,
) -> None:
    """Many tiny tensors in three calls, each of which takes the whole list and starts no threads.

    The fused kernel would start some for each tensor; where there are none to start, it is the faster one.
    """
    alone = torch.get_num_threads() == 1
    zero, one = (torch.full((), value, dtype=θs[0].dtype, device="cpu") for value in (0.0, 1.0))
    if maximize:
        gs = list(torch._foreach_neg(gs))
    if ms and alone:
        sgd(ms, gs, [], μ - 1, 0.0, -1.0, False)  # m − (μ − 1)(g − m)
    elif ms:
        torch._foreach_lerp_(ms, gs, 1 - μ)
    if λη and alone:
        sgd(θs, θs, [], λη, 0.0, 0.0, False)  # θ − λη θ
    elif λη:
        torch._foreach_lerp_(θs, [zero] * len(θs), λη)  # θ + λη (0 − θ); a product costs four times this
    torch._foreach_addcmul_(θs, ms or gs, [one] * len(θs), [-ηG for ηG in ηGs])


def _all_plain(tensors: Sequence[Tensor]) -> bool:
    """True if `_fusable` holds for all, for the plainest of reasons; faster than one by one."""
    dtypes = {tensor.dtype for tensor in tensors}
    return len(dtypes) == 1 and dtypes.issubset(_WIDE) and all(map(Tensor.is_contiguous, tensors))


def _fusable(θ: Tensor, g: Tensor, m: Tensor | None) -> bool:
    """True if the kernel takes them: one dtype, as wide as the arithmetic, and one order in memory."""
    if not (θ.dtype is g.dtype and (m is None or m.dtype is θ.dtype) and θ.dtype in _WIDE):
        return False
    if θ.is_contiguous() and g.is_contiguous() and (m is None or m.is_contiguous()):
        return True
    return same_order(θ, g, m)
