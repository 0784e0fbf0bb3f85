"""The optimizers that are compared, one entry of `OPTIMIZERS` each.

Weight decay is one rule for all: a task fixes κ, the fraction by which a step at the peak learning rate
shrinks a decayed weight, and every optimizer gets the λ that gives it. A learning-rate grid then searches
learning rates alone, on the same regularisation for everyone.

torch's optimizers are its fastest, the fused ones: step times are compared too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from sgd_sai.optimizer import SGDSaI

_MOMENTUM = 0.9  # of SGD and SGD-SaI

#: (parameter groups, lr η, shrink κ) → optimizer. A group whose "weight_decay" is 0 keeps it.
Factory = Callable[[list[dict[str, object]], float, float], Optimizer]


@dataclass(frozen=True)
class Entry:
    """An optimizer as the lab knows it.

    Attributes:
        name: what the command line and the records call it.
        label: what the report calls it.
        colour: of its curves, as (light page, dark page).
        start: the learning rate in the middle of its first tuning grid.
        build: the factory.
    """

    name: str
    label: str
    colour: tuple[str, str]
    start: float
    build: Factory


def _sgd_sai(groups: list[dict[str, object]], lr: float, shrink: float) -> Optimizer:
    return SGDSaI(groups, lr=lr, momentum=_MOMENTUM, weight_decay=shrink / lr)


def _adamw(groups: list[dict[str, object]], lr: float, shrink: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=shrink / lr, fused=True)


def _sgd(groups: list[dict[str, object]], lr: float, shrink: float) -> Optimizer:
    # Its decay enters the gradient, and momentum sums 1/(1 − μ) gradients.
    decay = shrink / lr * (1 - _MOMENTUM)
    return torch.optim.SGD(groups, lr=lr, momentum=_MOMENTUM, weight_decay=decay, fused=True)


OPTIMIZERS = {
    entry.name: entry
    for entry in (
        Entry("sgd-sai", "SGD-SaI", ("#c2410c", "#fb923c"), 1.0, _sgd_sai),
        Entry("adamw", "AdamW", ("#1d4ed8", "#7aa2f7"), 1e-3, _adamw),
        Entry("sgd", "SGD with momentum", ("#4d7c0f", "#a3c76d"), 0.1, _sgd),
    )
}


def build(name: str, model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """The optimizer `name` for `model`; tensors of fewer than two dimensions are not decayed."""
    params = [param for param in model.parameters() if param.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [param for param in params if param.dim() >= 2]},
        {"params": [param for param in params if param.dim() < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name].build([group for group in groups if group["params"]], lr, shrink)


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state as it is: its tensors, and 8 for each plain number."""
    total = 0
    for entries in optimizer.state.values():
        for value in entries.values():
            total += value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 8
    return total
