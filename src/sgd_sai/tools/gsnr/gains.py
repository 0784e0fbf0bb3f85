"""The local gain: how large an optimizer's update of a block is, per unit of its gradient.

    gain = RMS(Δθ) / RMS(g)

SGD's is one number for all blocks, SGD-SaI's one number per block, fixed at the start; Adam's and Adam-mini's
follow the gradient. Momentum moves all of them: RMS(m)/RMS(g) is about 1 where gradients agree from step to
step, and down to √((1−μ)/(1+μ)), 0.23 for μ = 0.9, where they are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from sgd_sai import gsnr
from sgd_sai.diagnostics import GSNRRecorder, Measurement
from sgd_sai.optimizer import SGDSaI
from sgd_sai.peers import PEERS, builders
from sgd_sai.tools.workload import Workload, step_quietly

POINTS = 200  # of a trace, at most
_MOMENTUM, _BETAS = 0.9, (0.9, 0.95)

#: (optimizer, step, loss), after every step.
Watcher = Callable[[str, int, float], None]


@dataclass
class Trace:
    """G_snr and gains of the blocks while one optimizer trained.

    Attributes:
        lr: its η.
        error: why it ended before its last step, or None.
        steps: those that were measured, from 1.
        losses: of these steps, before their updates.
        gsnr, gains: block → G_snr and gain of these steps, None where the gradient is zero.
    """

    lr: float
    error: str | None = None
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gsnr: dict[str, list[float | None]] = field(default_factory=dict)
    gains: dict[str, list[float | None]] = field(default_factory=dict)


def trace_all(
    workload: Workload, first: Measurement, lr: float, steps: int, watch: Watcher
) -> dict[str, Trace]:
    """Train `workload` from its start with each optimizer, and follow its blocks.

    No decay, no schedule, the same batches. The learning rates are those with which the first updates have
    the same RMS over all blocks: `lr` for Adam and Adam-mini, `lr` with ``normalize="rms"`` for SGD-SaI, and
    what `gsnr.rms_normalizer` makes of it for SGD, whose momentum is an EMA too here.

    Args:
        workload: it is left where the last optimizer brought it.
        first: the gradient of its first step.
        lr: Adam's η.
        steps: how many; at most `POINTS` of them are measured. A loss that is not finite ends a trace.
        watch: told of every step.

    Returns:
        optimizer → its trace. Adam-mini is there if the package `adam-mini` is; where it cannot take the
        model, its trace has an error and no steps.
    """
    named = workload.named
    params = [param for _, param in named]
    sgd_lr = lr / gsnr.rms_normalizer([1.0] * len(first.latched), [block.moments for block in first.latched])
    makers: dict[str, tuple[float, Callable[[], Optimizer]]] = {
        "SGD": (sgd_lr, lambda: torch.optim.SGD(params, sgd_lr, momentum=_MOMENTUM, dampening=_MOMENTUM)),
        "SGD-SaI": (lr, lambda: SGDSaI(named, lr, _MOMENTUM, normalize="rms")),
        "Adam": (lr, lambda: torch.optim.Adam(params, lr, betas=_BETAS)),
    }
    if PEERS["adam-mini"].missing() is None:
        makers["Adam-mini"] = (
            lr,
            lambda: builders.adam_mini(named, workload.model, lr=lr, betas=_BETAS),
        )
    traces = {}
    for name, (rate, make) in makers.items():
        workload.restart()
        trace = traces[name] = Trace(rate)
        try:
            _follow(workload, make(), steps, trace, name, watch)
        except (AssertionError, RuntimeError) as error:
            if name != "Adam-mini":
                raise
            trace.error = f"it cannot take this model: {str(error).splitlines()[0]}"
    return traces


def _follow(
    workload: Workload, optimizer: Optimizer, steps: int, trace: Trace, name: str, watch: Watcher
) -> None:
    blocks = dict(workload.named)
    trace.gsnr, trace.gains = {block: [] for block in blocks}, {block: [] for block in blocks}
    recorder = GSNRRecorder(blocks.items())
    every = -(-steps // POINTS)
    for step in range(1, steps + 1):
        loss = workload.backward(step - 1)
        if not -float("inf") < loss < float("inf"):
            trace.error = f"the loss of step {step} is {loss}"
            return
        if (step - 1) % every == 0:
            measured = {row["block"]: row for row in recorder.record()}
            before = {block: param.detach().clone() for block, param in blocks.items()}
            step_quietly(optimizer)
            for block, param in blocks.items():
                row = measured.get(block)
                trace.gsnr[block].append(None if row is None else row["gsnr"])
                moved = _norm(param.detach() - before[block])
                trace.gains[block].append(None if row is None else moved / row["norm"])
            trace.steps.append(step)
            trace.losses.append(loss)
        else:
            step_quietly(optimizer)
        watch(name, step, loss)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(gsnr.as_real(tensor).double()))
