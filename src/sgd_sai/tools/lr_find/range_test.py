"""The learning-rate range test: train while lr rises, and see where the loss falls and where it breaks.

(Smith 2017, "Cyclical learning rates for training neural networks", arXiv 1506.01186, section 3.3.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import stdev

from torch.optim import Optimizer

from sgd_sai.tools.workload import Workload, step_quietly

SMOOTHING = 0.9  # of the loss's EMA
EARLY = 10  # steps at least in which the EMA is still that of few losses


@dataclass
class RangeTest:
    """The losses of a range test, and the learning rates that they point to.

    Attributes:
        lrs: η of each step.
        losses: of each step, before its update.
        smoothed: their EMA, corrected for its start.
        broke: True if the loss broke before the last step.
    """

    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    broke: bool = False

    @property
    def _begin(self) -> int:
        """The first step whose smoothed loss counts; of a short test, a quarter goes at most."""
        return min(EARLY, len(self.smoothed) // 4)

    @property
    def _bottom(self) -> int:
        return min(range(self._begin, len(self.smoothed)), key=lambda k: self.smoothed[k])

    @property
    def lowest(self) -> float:
        """η at the lowest smoothed loss: from there on, larger steps do harm."""
        return self.lrs[self._bottom]

    @property
    def steepest(self) -> float | None:
        """η at which the smoothed loss falls fastest in log η; None if it never falls by more than noise.

        Noise is that of the EMA: twice its deviation, as the first losses scatter, while η is too small to
        move them.
        """
        begin, bottom = self._begin, self._bottom
        scatter = stdev(self.losses[:begin]) if begin > 1 else 0.0
        noise = 2 * scatter * math.sqrt((1 - SMOOTHING) / (1 + SMOOTHING))
        start = self.smoothed[begin] - noise
        # The fall begins after the last step that noise explains: before it, slopes are noise too.
        left = max((k for k in range(begin, bottom + 1) if self.smoothed[k] >= start), default=begin)
        slopes = {  # steps are equal in log η
            k: (self.smoothed[k + 1] - self.smoothed[k - 1]) for k in range(left + 1, bottom)
        }
        return self.lrs[min(slopes, key=lambda k: slopes[k])] if slopes else None


def range_test(
    workload: Workload,
    optimizer: Optimizer,
    low: float,
    high: float,
    steps: int,
    watch: Callable[[int, float, float], None],
) -> RangeTest:
    """Train `workload` with η rising from `low` to `high` by the same factor each step.

    It ends early where the loss is not finite, or its EMA is above its lowest value by more than the first
    loss was above zero.

    Args:
        workload: trained from where it is.
        optimizer: of its parameters; all groups get the same η.
        low, high: 0 < low < high.
        steps: at least 2.
        watch: told (step, η, loss).

    Raises:
        ValueError: the first loss is not finite.
    """
    found = RangeTest()
    average = 0.0
    for step in range(steps):
        lr = low * (high / low) ** (step / (steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = workload.backward(step)
        if not math.isfinite(loss):
            found.broke = True
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.lrs.append(lr)
        found.losses.append(loss)
        found.smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
        if found.smoothed[-1] - min(found.smoothed) > abs(found.losses[0]):
            found.broke = True
            break
        step_quietly(optimizer)
        watch(step + 1, lr, loss)
    if not found.losses:
        raise ValueError("loss: the first one is not finite")
    return found
