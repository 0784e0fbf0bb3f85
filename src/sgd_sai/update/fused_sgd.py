"""torch's fused SGD kernel on the CPU, and Algorithm 1's last line by it, in one pass.

In one pass that kernel computes  b ← μ b + (1 − τ)(g + ωθ);  θ ← θ − αb,  or θ ← θ − α(g + ωθ) without b.
It takes tensors of one dtype and one memory order: it goes through memory from the first element on, whatever
the strides are, and does not look at sizes. Nor does it tell autograd what it has written.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# λ/G up to which decay and move take one pass: the kernel computes (λ/G) θ, which must not overflow.
_LARGEST = 2.0**40


@lru_cache(8)  # it is asked for every tensor
def decay_of(λη: float, dtype: torch.dtype) -> float:
    """λη, such that θ − λη θ is θ (1 − λη) with the factor as `dtype` has it."""
    return 1.0 - torch.tensor(1.0 - λη, dtype=dtype, device="cpu").item() if λη else 0.0


def sgd(
    θs: list[Tensor],
    gs: list[Tensor],
    ms: list[Tensor],
    lr: float,
    momentum: float,
    decay: float,
    maximize: bool,
) -> None:
    """The kernel, on lists of tensors; no momenta: []."""
    torch._fused_sgd_(
        θs, gs, ms, weight_decay=decay, momentum=momentum, lr=lr, dampening=momentum,
        nesterov=False, maximize=maximize, is_first_step=False, grad_scale=None, found_inf=None,
    )  # fmt: skip


def descend(θ: Tensor, m: Tensor, ηG: float, λη: float, maximize: bool = False) -> None:
    """θ ← θ (1 − λη) − ηG m, in place; λη as `decay_of` has it."""
    if λη <= ηG * _LARGEST:
        sgd([θ], [m], [], ηG, 0.0, λη / ηG if λη else 0.0, maximize)
    else:
        sgd([θ.mul_(1 - λη)], [m], [], ηG, 0.0, 0.0, maximize)
