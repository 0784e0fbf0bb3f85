"""What records say: one row per task and optimizer, and sentences. Reports and figures say no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, median, stdev
from typing import Any

from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Run

#: The optimizer that the sentences are about.
OURS = "sgd-sai"


@dataclass(frozen=True)
class Row:
    """The runs of one optimizer on one task: the same configuration but for the seed."""

    optimizer: str
    runs: list[Run]

    @property
    def label(self) -> str:
        """What the optimizer is called."""
        return OPTIMIZERS[self.optimizer].label

    @property
    def finished(self) -> list[Run]:
        """The runs that got to their last step."""
        return [run for run in self.runs if run.record.status == "finished"]

    @property
    def troubles(self) -> list[str]:
        """How the other runs ended, a phrase each."""
        phrases = []
        for run in self.runs:
            config, status = run.record.config, run.record.status
            if status == "diverged" and run.record.result is not None:
                status = f"diverged at step {run.record.result['diverged_at']}"
            elif status != "finished":
                done = run.training[-1]["step"] if run.training else 0
                status = f"stopped at step {done:.0f} of {config.steps}"
            if status != "finished":
                phrases.append(status if len(self.runs) == 1 else f"seed {config.seed} {status}")
        return phrases

    def final(self, metric: str) -> list[float]:
        """The metric at the end of each finished run."""
        return [run.record.result[metric] for run in self.finished if run.record.result is not None]

    def mean(self, metric: str) -> float | None:
        """Mean over the finished runs, None if there is none."""
        values = self.final(metric)
        return mean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the finished runs, None for fewer than two."""
        values = self.final(metric)
        return stdev(values) if len(values) > 1 else None

    @property
    def step_ms(self) -> float | None:
        """Median milliseconds of optimizer.step."""
        values = [line["step_ms"] for run in self.runs for line in run.training]
        return median(values) if values else None

    @property
    def state_bytes(self) -> int | None:
        """Bytes of the optimizer's state at the end of a run."""
        values = [run.record.result["state_bytes"] for run in self.runs if run.record.result is not None]
        return max(values) if values else None

    @property
    def rates(self) -> list[float]:
        """The learning rates that were used, one unless runs differ."""
        return sorted({run.record.config.lr for run in self.runs})

    @property
    def tuning(self) -> dict[str, Any] | None:
        """Where the learning rate comes from."""
        return self.runs[0].record.tuning


@dataclass(frozen=True)
class TaskSummary:
    """A task: its rows, in the order of the optimizers' registry."""

    name: str
    rows: list[Row]

    @property
    def about(self) -> dict[str, Any]:
        """Title, metric and so on, as they were recorded."""
        return self.rows[0].runs[0].record.task

    @property
    def by_accuracy(self) -> bool:
        """True if the task is judged by accuracy, false if by loss."""
        return bool(self.about["metric"] == "val_accuracy")

    @cached_property
    def ranking(self) -> list[Row]:
        """Rows with a result, best first."""
        metric = self.about["metric"]
        ranked = [(value, row) for row in self.rows if (value := row.mean(metric)) is not None]
        ranked.sort(key=lambda pair: pair[0], reverse=self.by_accuracy)
        return [row for _, row in ranked]

    def shown(self, value: float) -> str:
        """A value of the metric, for people."""
        return f"{100 * value:.1f}\u00a0%" if self.by_accuracy else f"{value:.3f}"

    def shown_mean(self, row: Row) -> str:
        """The mean of a row that has a result, for people."""
        return self.shown(row.mean(self.about["metric"]) or 0.0)

    def difference(self, a: float, b: float) -> str:
        """|a − b| of the metric, for people."""
        return (
            f"{100 * abs(a - b):.1f} points" if self.by_accuracy else f"{abs(a - b):.3f} {self.about['unit']}"
        )


def by_task(runs: Sequence[Run]) -> list[TaskSummary]:
    """The tasks in the order in which they were run."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        config = run.record.config
        found.setdefault(config.task, {}).setdefault(config.optimizer, []).append(run)
    return [
        TaskSummary(task, [Row(name, rows[name]) for name in OPTIMIZERS if name in rows])
        for task, rows in found.items()
    ]


def sentences(tasks: Sequence[TaskSummary]) -> list[str]:
    """The result in plain sentences: what ends where, what it costs, and how much can be read from it."""
    said = _about_all(tasks)
    said += [sentence for task in tasks for sentence in _about_task(task)]
    said += _about_state(tasks)
    said += _about_time(tasks)
    seeds = min((len(row.finished) for task in tasks for row in task.ranking), default=0)
    if seeds == 1:
        said.append("One seed each: the spread is not known, and small differences may be chance.")
    elif seeds > 1:
        said.append(f"Means over at least {seeds} seeds; ± is the standard deviation over them.")
    return said


def _about_all(tasks: Sequence[TaskSummary]) -> list[str]:
    rankings = [[(row.optimizer, task.shown_mean(row)) for row in task.ranking] for task in tasks]
    compared = [ranking for ranking in rankings if len(ranking) > 1 and OURS in dict(ranking)]
    if len(compared) < 2:
        return []
    first = sum(dict(ranking)[OURS] == ranking[0][1] for ranking in compared)
    last = sum(dict(ranking)[OURS] == ranking[-1][1] for ranking in compared)
    return [f"SGD-SaI ends first on {first} of {len(compared)} tasks and last on {last}."]


def _about_task(task: TaskSummary) -> list[str]:
    title, metric = task.about["title"], task.about["metric"]
    troubles = [f"{title}: {row.label} {trouble}." for row in task.rows for trouble in row.troubles]
    if not task.ranking:
        return troubles or [f"{title}: no run has finished."]
    scored = [(row, row.mean(metric) or 0.0) for row in task.ranking]
    (best, value), others = scored[0], scored[1:]
    what = "the highest accuracy" if task.by_accuracy else "the lowest validation loss"
    unit = "" if task.by_accuracy else f" {task.about['unit']}"
    if not others:
        return [f"{title}: {best.label} ends at {task.shown(value)}{unit}.", *troubles]
    level = [row for row, other in others if task.shown(other) == task.shown(value)]
    if level:
        names = " and ".join(row.label for row in (best, *level))
        first = f"{title}: {names} end level at {task.shown(value)}{unit}, {what}"
    else:
        first = f"{title}: {best.label} reaches {what}, {task.shown(value)}{unit}"
    side = "lower" if task.by_accuracy else "higher"
    behind = [
        f"{row.label} ends {task.difference(other, value)} {side}"
        for row, other in others
        if row not in level
    ]
    return ["; ".join([first, *behind]) + ".", *troubles]


def _about_state(tasks: Sequence[TaskSummary]) -> list[str]:
    shares = []
    for task in tasks:
        rows = {row.optimizer: row.state_bytes for row in task.rows}
        ours, adamw = rows.get(OURS), rows.get("adamw")
        if ours and adamw:
            shares.append(100 * ours / adamw)
    if not shares:
        return []
    return [
        f"SGD-SaI's state is {_range(shares, '.0f')} % of AdamW's, as measured on the optimizers at the end."
    ]


def _about_time(tasks: Sequence[TaskSummary]) -> list[str]:
    ratios: dict[str, list[float]] = {}
    for task in tasks:
        times = {row.optimizer: row.step_ms for row in task.rows}
        ours = times.pop(OURS, None)
        for name, other in times.items():
            if ours and other:
                ratios.setdefault(name, []).append(ours / other)
    if not ratios:
        return []
    parts = [f"{_range(values, '.2f')} × that of {OPTIMIZERS[name].label}" for name, values in ratios.items()]
    return [f"The median time of SGD-SaI's optimizer.step is {' and '.join(parts)}."]


def _range(values: Sequence[float], spec: str) -> str:
    low, high = format(min(values), spec), format(max(values), spec)
    return low if low == high else f"{low}–{high}"
