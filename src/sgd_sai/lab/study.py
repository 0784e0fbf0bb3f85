"""Several runs, one after another, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sgd_sai.lab import runner
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Record, RunConfig
from sgd_sai.lab.tasks import ALL


class Study:
    """Runs, with a line for each that ends and a bar for the one that goes on and for all."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        """`total`: steps of all runs, or None where their number is not known."""
        self._progress = progress
        self._all = progress.add_task("all runs", total=total, loss="", lr="")

    def run(self, config: RunConfig, folder: Path, tuning: dict[str, Any] | None = None) -> Record:
        """Carry out one run, or what is left of it."""
        name = f"{config.task} · {OPTIMIZERS[config.optimizer].label} · seed {config.seed}"
        bar = self._progress.add_task(name, total=config.steps, loss="", lr=f"lr {config.lr:.3g}")
        before = self._progress.tasks[0].completed

        def watch(step: int, loss: float, lr: float) -> None:
            self._progress.update(bar, completed=step, loss=f"loss {loss:.3f}", lr=f"lr {lr:.2e}")
            self._progress.update(self._all, completed=before + step)

        try:
            record = runner.train(config, folder, tuning, watch)
        finally:
            self._progress.remove_task(bar)
        self._progress.update(self._all, completed=before + config.steps)
        self._progress.console.print(
            f"{name} · lr {config.lr:.3g}: {outcome(record)}", highlight=False, soft_wrap=True
        )
        return record


@contextmanager
def study(total: int | None = None) -> Iterator[Study]:
    """A `Study` with its progress bar on the terminal."""
    columns = (
        "{task.description}",
        BarColumn(),
        "{task.percentage:3.0f}%",
        "{task.fields[loss]}",
        "{task.fields[lr]}",
    )
    texts = [TextColumn(each) if isinstance(each, str) else each for each in columns]
    with Progress(*texts, TimeRemainingColumn(), console=Console()) as progress:
        yield Study(progress, total)


def outcome(record: Record) -> str:
    """How a run ended, in a few words."""
    result = record.result
    if result is None:
        return record.status
    if record.status == "diverged":
        return f"diverged at step {result['diverged_at']}"
    accuracy = f", accuracy {result['val_accuracy']:.1%}" if record.task["metric"] == "val_accuracy" else ""
    return f"validation loss {result['val_loss']:.4f}{accuracy}, {result['seconds']:.0f} s"


def better(record: Record) -> tuple[float, float]:
    """A key that is smaller for the better run: by its task's metric, then by its loss; diverged is last."""
    return rank(ALL[record.config.task].metric, record.status, record.result)


def rank(metric: str, status: str, result: dict[str, Any] | None) -> tuple[float, float]:
    """`better`, for what a run left."""
    if status != "finished" or result is None:
        return (float("inf"), float("inf"))
    loss = result["val_loss"]
    return (loss if metric == "val_loss" else -result["val_accuracy"], loss)
