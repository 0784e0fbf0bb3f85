"""Runs sorted into the rows of tables: a part per task and setting, a row per optimizer and learning rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean, median, stdev
from typing import Any

from sgd_sai.lab import tuned
from sgd_sai.lab.numbers import exact
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import BlockGSNR, Run, RunConfig

OURS = "sgd-sai"  # the optimizer that is compared with the others
BASE = "adamw"  # the one that differences are taken to

#: The rows of one table have it in common: all of a run but its seed, optimizer and lr; the data, the metric.
Setting = tuple[RunConfig, str, str]


@dataclass(frozen=True)
class Row:
    """The runs of one optimizer in one setting: the same configuration but for the seed, each seed once.

    `label` names the optimizer, with the learning rate where another row has another.
    """

    optimizer: str
    label: str
    runs: list[Run]

    @property
    def finished(self) -> list[Run]:
        """The runs that got to their last step."""
        return [run for run in self.runs if run.record.status == "finished"]

    @property
    def troubles(self) -> list[str]:
        """The ends of the other runs, a phrase each."""
        phrases = []
        for run in self.runs:
            config, status = run.record.config, run.record.status
            if status == "finished":
                continue
            if status == "diverged" and run.record.result is not None:
                phrase = f"diverged at step {run.record.result['diverged_at']}"
            else:
                done = run.training[-1]["step"] if run.training else 0
                phrase = f"stopped at step {done:.0f} of {config.steps}"
            phrases.append(phrase if len(self.runs) == 1 else f"seed {config.seed} {phrase}")
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
    def lr(self) -> float:
        """The peak learning rate."""
        return self.runs[0].record.config.lr

    @property
    def tuning(self) -> dict[str, Any] | None:
        """The record of the learning rate's tuning, None if it was given."""
        return self.runs[0].record.tuning

    @property
    def trials(self) -> int | None:
        """The number of runs that tuned the learning rate, None if it was given."""
        return None if self.tuning is None else len(self.tuning["points"])

    @property
    def on_edge(self) -> bool:
        """True if no smaller or no larger learning rate was tried."""
        return self.tuning is not None and tuned.on_edge(self.lr, self.tuning["grid"])


@dataclass(frozen=True)
class TaskSummary:
    """A task in one setting: its rows, in the order of the optimizers' registry.

    `name` is unique, for links; `title` tells it from other settings of the task.
    """

    name: str
    title: str
    rows: list[Row]

    @property
    def about(self) -> dict[str, Any]:
        """Title, metric and so on, as they were recorded."""
        return self.rows[0].runs[0].record.task

    @property
    def by_accuracy(self) -> bool:
        """True if the task is judged by accuracy, false if by loss."""
        return bool(self.about["metric"] == "val_accuracy")

    def best(self, optimizer: str) -> Row | None:
        """The best row of an optimizer, None if it has none."""
        rows = [row for row in (*self.ranking, *self.rows) if row.optimizer == optimizer]
        return rows[0] if rows else None

    @property
    def base(self) -> Row | None:
        """The row that the others are compared with: AdamW's best."""
        return self.best(BASE) if len(self.rows) > 1 else None

    @property
    def gsnr(self) -> list[tuple[Row, BlockGSNR]]:
        """The g-SNR of the blocks in the first run of SGD-SaI and of AdamW, where it was recorded."""
        rows = [row for name in (OURS, BASE) if (row := self.best(name)) is not None]
        return [(row, gsnr) for row in rows if (gsnr := row.runs[0].gsnr) is not None and gsnr.steps]

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
    """The tasks and their settings in the order in which they were run, without the runs of sweeps."""
    found: dict[Setting, list[Run]] = {}
    for run in runs:
        if run.record.config.weight_decay is None:
            found.setdefault(_setting(run), []).append(run)
    return [_summary(setting, group, [*found]) for setting, group in found.items()]


def _setting(run: Run) -> Setting:
    task = run.record.task
    return replace(run.record.config, seed=0, optimizer="", lr=0.0), task["data"], task["metric"]


def _summary(setting: Setting, runs: Sequence[Run], settings: Sequence[Setting]) -> TaskSummary:
    config, data, _ = setting
    same_task = [other for other in settings if other[0].task == config.task]
    place = same_task.index(setting)
    title = [runs[0].record.task["title"]]
    if any(other.steps != config.steps for other, *_ in same_task):
        title.append(f"{config.steps} steps")
    if any(other.threads != config.threads for other, *_ in same_task):
        title.append(f"{config.threads} thread{'s' if config.threads > 1 else ''}")
    if any(other != data for _, other, _ in same_task):
        title.append(data.partition(":")[0])
    name = config.task + (f"-{place + 1}" if place else "")
    return TaskSummary(name, ", ".join(title), _rows(runs))


def _rows(runs: Sequence[Run]) -> list[Row]:
    found: dict[tuple[str, float], dict[int, Run]] = {}
    # A seed that was run twice counts once: its last run, or its last that finished.
    for run in sorted(runs, key=lambda run: run.record.status == "finished"):
        config = run.record.config
        found.setdefault((config.optimizer, config.lr), {})[config.seed] = run
    order = [*OPTIMIZERS]
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    rates = Counter(optimizer for optimizer, _ in keys)
    return [
        Row(
            optimizer,
            OPTIMIZERS[optimizer].label + (f", lr {exact(lr)}" if rates[optimizer] > 1 else ""),
            [run for _, run in sorted(found[optimizer, lr].items())],
        )
        for optimizer, lr in keys
    ]
