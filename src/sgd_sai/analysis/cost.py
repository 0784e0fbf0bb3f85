"""What `GSNRRecorder` costs on a model, timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

from sgd_sai.analysis.gains import step_quietly
from sgd_sai.analysis.recorder import GSNRRecorder
from sgd_sai.analysis.workload import Workload
from sgd_sai.optimizer import SGDSaI


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
        """What the recorder adds to the step time, as a fraction."""
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
