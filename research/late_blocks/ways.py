"""The ways to scale late blocks, and a run of one of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from research.late_blocks.situations import Situation
from sgd_sai import UNLATCHED, SGDSaI, measure_scales
from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.tasks import Problem

#: Way → what the page calls it.
WAYS = {
    "as it is": "as it is: capped at 1",
    "measure_again": "`measure_again()`",
    "measure_scales": "`scale=measure_scales(…)`",
    "rms": '`normalize="rms"`',
    "adamw": "AdamW",
}
CLIP, DIVERGED = 1.0, 20.0  # norm of the gradient; nats of training loss
CAPPED = 1.1  # times the maximum, from which the warning counts a block
_BETAS = (0.9, 0.95)

Watch = Callable[[int, nn.Module, Optimizer], None]


@dataclass(frozen=True)
class Trained:
    """What a run ends with: its model, or None and the step at which it diverged; and its optimizer."""

    model: nn.Module | None
    step: int
    optimizer: Optimizer


def build(way: str, model: nn.Module, problem: Problem, seed: int, lr: float) -> Optimizer:
    """The optimizer of a way, for all that is ever trained; "measure_scales" sees the first batch."""
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if way == "adamw":
        params = [param for _, param in named]
        return torch.optim.AdamW(params, lr=lr, betas=_BETAS, weight_decay=0.0)
    if way == "rms":
        return SGDSaI(named, lr=lr, normalize="rms")
    if way == "measure_scales":
        scales = measure_scales(model, lambda: problem.loss(model, problem.batch(seed, 0)))
        return SGDSaI(named, lr=lr, scale=scales)
    return SGDSaI(named, lr=lr)


def train(
    situation: Situation,
    problem: Problem,
    way: str,
    lr: float,
    *,
    seed: int,
    steps: int,
    watch: Watch | None = None,
) -> Trained:
    """Run a way; `watch` sees every step after it was made.

    Scales are forgotten after the step in which the last block got one; where blocks are unfrozen, then.
    """
    torch.manual_seed(seed)
    model, schedule = problem.model(), Schedule()
    model.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SGDSaI|measure_scales")  # they are what is studied
        optimizer = build(way, model, problem, seed, lr)
        late = [
            param
            for name, param in model.named_parameters()
            if param.requires_grad and situation.first is not None and not situation.first(name)
        ]
        _set_trained(late, False)
        waits = way == "measure_again"
        for step in range(steps):
            if late and step == steps // 3:
                _set_trained(late, True)
                if waits:
                    _again(optimizer)
                    waits = False
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps)
            optimizer.zero_grad()
            loss = problem.loss(model, problem.batch(seed, step))
            loss.backward()  # type: ignore[no-untyped-call]
            if not loss.item() < DIVERGED:
                return Trained(None, step, optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            if watch is not None:
                watch(step, model, optimizer)
            if waits and not late and all(gsnr != UNLATCHED for gsnr, _, _ in _measured(optimizer)):
                _again(optimizer)
                waits = False
    return Trained(model, steps, optimizer)


def _set_trained(params: list[nn.Parameter], trained: bool) -> None:
    for param in params:
        param.requires_grad_(trained)


def _again(optimizer: Optimizer) -> None:
    assert isinstance(optimizer, SGDSaI)
    optimizer.measure_again()


def _measured(optimizer: Optimizer) -> list[tuple[float, float, int]]:
    """(G_snr, the maximum, number of elements) of each block."""
    return [
        (state.get("gsnr", UNLATCHED), state.get("gsnr_max", UNLATCHED), param.numel())
        for group in optimizer.param_groups
        for param in group["params"]
        for state in [optimizer.state[param]]
    ]


def capping(optimizer: Optimizer) -> dict[str, float]:
    """The share of elements whose G_snr is above the maximum, as the warning has it, and the most."""
    blocks = _measured(optimizer)
    above = sum(n for gsnr, most, n in blocks if gsnr > CAPPED * most)
    ratio = max(gsnr / most for gsnr, most, _ in blocks)
    return {"capped": round(above / sum(n for *_, n in blocks), 4), "ratio": float(f"{ratio:.4g}")}


def scales(optimizer: Optimizer) -> list[float]:
    """By what each block's momentum is multiplied, beside the learning rate.

    But for the biases of keys, whose gradients are rounding errors.
    """
    rms = optimizer.param_groups[0]["normalize"] == "rms"  # one divisor for all
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    return [
        gsnr if rms else min(gsnr / most, 1.0)
        for name, (gsnr, most, _) in zip(names, _measured(optimizer), strict=True)
        if not name.endswith(("key.bias", "k_proj.bias"))
    ]


def apart(one: list[float], other: list[float]) -> float:
    """By how much two sets of scales differ at the most, each in units of its own."""
    logs = [math.log(a / b) for a, b in zip(one, other, strict=True)]
    return float(f"{math.exp(max(logs) - min(logs)):.4g}")
