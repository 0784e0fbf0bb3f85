"""The results of a sweep on its grid, from the records of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Run


@dataclass(frozen=True)
class Grid:
    """The results of one optimizer on one task; a run that diverged or is missing has none."""

    title: str
    metric: str
    rates: list[float]
    decays: list[float]
    found: list[list[float | None]]  # [weight decay][lr]

    @property
    def best(self) -> float | None:
        """The best result."""
        return (max if self.metric == "val_accuracy" else min)(self.numbers, default=None)

    @property
    def mean(self) -> float | None:
        """Over the points that finished; of accuracies over all, since a run that diverged is worth 0."""
        count = len(self.rates) * len(self.decays) if self.metric == "val_accuracy" else len(self.numbers)
        return sum(self.numbers) / count if count else None

    @property
    def edges(self) -> list[str]:
        """The axes on whose edge the best result lies; an axis of one value has none, and λ = 0 is none."""
        places = [
            (lr, decay)
            for decay, row in zip(self.decays, self.found, strict=True)
            for lr, value in zip(self.rates, row, strict=True)
            if value is not None and value == self.best
        ]
        on_rates = places and all(lr in (self.rates[0], self.rates[-1]) for lr, _ in places)
        on_decays = places and all(d in (self.decays[0], self.decays[-1]) and d for _, d in places)
        found = (("learning rate", on_rates, self.rates), ("weight decay", on_decays, self.decays))
        return [name for name, on_edge, values in found if on_edge and len(values) > 1]

    @property
    def numbers(self) -> list[float]:
        """The results that there are."""
        return [value for row in self.found for value in row if value is not None]

    @property
    def summary(self) -> str:
        """The best, the mean over the grid as the paper gives it, how many finished, and what to widen."""
        count = len(self.rates) * len(self.decays)
        if self.best is None or self.mean is None:
            return f"{self.title}: none of {count} points finished"
        words = f"{self.title}: best {self.best:.4g}, mean {self.mean:.4g}"
        if len(self.numbers) < count:
            words += f", {len(self.numbers)} of {count} points finished"
        return words + "".join(f"; the best is on the edge of the {axis}s" for axis in self.edges)


def grids(runs: Sequence[Run]) -> list[Grid]:
    """Return one grid for each task, its metric, optimizer and seed."""
    sorted_out: dict[tuple[str, str, str, int], list[Run]] = {}
    for run in runs:
        config, metric = run.record.config, run.record.task["metric"]
        sorted_out.setdefault((config.task, metric, config.optimizer, config.seed), []).append(run)
    return [_grid(group) for group in sorted_out.values()]


def _grid(runs: Sequence[Run]) -> Grid:
    record = runs[0].record
    metric = record.task["metric"]
    results = {
        (run.record.config.lr, run.record.config.weight_decay): run.record.result[metric]
        for run in runs
        if run.record.status == "finished" and run.record.result is not None
    }
    rates = sorted({run.record.config.lr for run in runs})
    decays = sorted({run.record.config.weight_decay or 0.0 for run in runs})
    found = [[results.get((lr, decay)) for lr in rates] for decay in decays]
    label = OPTIMIZERS[record.config.optimizer].label
    title = f"{record.task['title']}, {label}, seed {record.config.seed}"
    return Grid(title, metric, rates, decays, found)
