"""The time that `GSNRRecorder` adds to a training step of a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

from sgd_sai.diagnostics import GSNRRecorder
from sgd_sai.optimizer import SGDSaI
from sgd_sai.tools.workload import Workload, step_quietly


@dataclass(frozen=True)
class Cost:
    """Medians of `runs` alternating measurements, in seconds.

    Attributes:
        record_s: of one record.
        step_s: of one training step: batch, forward, backward, SGDSaI.step.
        every: the recorder's default.
        runs: how many of each.
    """

    record_s: float
    step_s: float
    every: int
    runs: int

    @property
    def share(self) -> float:
        """The time that the recorder adds to a step, as a fraction of it."""
        return self.record_s / (self.every * self.step_s)


def measure_cost(workload: Workload, runs: int = 20) -> Cost:
    """Time `runs` training steps, after one to warm up, each followed by a record of its gradient."""
    optimizer = SGDSaI(workload.named, lr=1e-3, normalize="rms")
    recorder = GSNRRecorder(workload.named)
    steps, records = [], []
    for step in range(runs + 1):
        begun = time.perf_counter()
        workload.backward(step)
        step_quietly(optimizer)
        stepped = time.perf_counter()
        recorder.record()
        records.append(time.perf_counter() - stepped)
        steps.append(stepped - begun)
    return Cost(median(records[1:]), median(steps[1:]), recorder.every, runs)
