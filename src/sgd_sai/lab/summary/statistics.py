"""Runs against AdamW's, seed by seed: the same initial weights and batches, so that seeds are pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, median, stdev

from scipy import stats

from sgd_sai.lab.records import Run

LEVEL = 0.95  # of the interval


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences, and its interval of confidence, None for fewer than two pairs."""

    mean: float
    interval: tuple[float, float] | None
    pairs: int


@dataclass(frozen=True)
class Reached:
    """When runs first were as good as AdamW's with the same seed at its end: medians over those that were.

    Evaluations are a tenth of a run apart, and so are these figures.
    """

    steps: float | None
    seconds: float | None
    reached: int
    pairs: int


def difference(runs: Sequence[Run], base: Sequence[Run], metric: str) -> Difference | None:
    """The metric of `runs` minus that of `base`, paired by seed; None if no seed finished in both.

    The interval is Student's: mean ± t · s/√n, with n − 1 degrees of freedom.
    """
    differences = [_final(run, metric) - _final(other, metric) for run, other in pairs(runs, base)]
    if not differences:
        return None
    return Difference(mean(differences), interval(differences), len(differences))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of confidence of the mean, None for fewer than two values."""
    center, count = mean(values), len(values)
    if count < 2:
        return None
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * stdev(values) / sqrt(count)
    return center - half, center + half


def reached(runs: Sequence[Run], base: Sequence[Run], metric: str, higher: bool) -> Reached | None:
    """When `runs` first are as good as `base` ends; `higher`: larger is better. None without curves."""
    found = [pair for pair in pairs(runs, base) if all(run.evaluations for run in pair)]
    if not found:
        return None
    moments = []
    for run, other in found:
        target = other.evaluations[-1][metric]
        good = (line[metric] >= target if higher else line[metric] <= target for line in run.evaluations)
        line = next((line for line, met in zip(run.evaluations, good, strict=True) if met), None)
        if line is not None:
            moments.append((line["step"], line["seconds"]))
    steps, seconds = zip(*moments, strict=True) if moments else ((), ())
    return Reached(
        median(steps) if steps else None, median(seconds) if seconds else None, len(moments), len(found)
    )


def pairs(runs: Sequence[Run], base: Sequence[Run]) -> list[tuple[Run, Run]]:
    """(run, run of `base`) with the same seed, where both finished."""
    finished = {run.record.config.seed: run for run in base if run.record.status == "finished"}
    return [
        (run, finished[run.record.config.seed])
        for run in runs
        if run.record.status == "finished" and run.record.config.seed in finished
    ]


def _final(run: Run, metric: str) -> float:
    assert run.record.result is not None  # it finished
    return float(run.record.result[metric])
