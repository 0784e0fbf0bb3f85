"""Several runs, one after another or side by side, with a progress bar."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sgd_sai.lab import ranks, runner
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Record, RunConfig
from sgd_sai.lab.tasks import ALL

#: A run to do: what, where, and where its learning rate comes from.
Plan = tuple[RunConfig, Path, dict[str, Any] | None]


class Study:
    """Runs, with a line for each that ends and a bar for each that goes on and for all."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        """`total`: steps of all runs, or None where their number is not known."""
        self._progress = progress
        self._all = progress.add_task("all runs", total=total, loss="", lr="")
        self._ended = 0  # steps of the runs that have ended
        self._bars: dict[TaskID, int] = {}  # of the others, with the steps done

    def run(self, config: RunConfig, folder: Path, tuning: dict[str, Any] | None = None) -> Record:
        """Carry out one run, or what is left of it."""
        bar = self._begin(config)
        try:
            record = runner.train(
                config, folder, tuning, lambda step, loss, lr: self._follow(bar, step, loss, lr)
            )
        except BaseException:
            self._progress.remove_task(bar)
            raise
        self._end(bar, record)
        return record

    def run_all(self, plans: Sequence[Plan], jobs: int) -> None:
        """Carry out the runs, `jobs` at a time, each in a process if there is more than one.

        Raises:
            KeyboardInterrupt: every run that was begun has stopped between two steps, and can be resumed.
        """
        if jobs == 1:
            for plan in plans:
                self.run(*plan)
            return
        context = get_context("spawn")
        steps, stop = context.Queue(), context.Event()
        waiting = list(reversed(plans))
        running: dict[str, tuple[Future[Record], TaskID]] = {}
        with ProcessPoolExecutor(jobs, context, _begin_worker, (steps, stop, os.getpid())) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        plan = waiting.pop()
                        running[str(plan[1])] = pool.submit(_train, plan), self._begin(plan[0])
                    self._hear(steps, {folder: bar for folder, (_, bar) in running.items()})
                    for folder, (future, bar) in list(running.items()):
                        if future.done():
                            self._end(bar, future.result())
                            del running[folder]
            except BaseException:
                stop.set()
                raise

    def _hear(self, steps: Any, bars: dict[str, TaskID]) -> None:
        """Show the steps that other processes have told of, waiting a little for the first."""
        try:
            folder, *step = steps.get(timeout=0.2)
            while True:
                if folder in bars:
                    self._follow(bars[folder], *step)
                folder, *step = steps.get_nowait()
        except queue.Empty:
            pass

    def _begin(self, config: RunConfig) -> TaskID:
        bar = self._progress.add_task(_name(config), total=config.steps, loss="", lr=f"lr {config.lr:.3g}")
        self._bars[bar] = 0
        return bar

    def _follow(self, bar: TaskID, step: int, loss: float, lr: float) -> None:
        self._bars[bar] = step
        self._progress.update(bar, completed=step, loss=f"loss {loss:.3f}", lr=f"lr {lr:.2e}")
        self._progress.update(self._all, completed=self._ended + sum(self._bars.values()))

    def _end(self, bar: TaskID, record: Record) -> None:
        del self._bars[bar]
        self._ended += record.config.steps
        self._progress.remove_task(bar)
        self._progress.update(self._all, completed=self._ended + sum(self._bars.values()))
        text = f"{_name(record.config)} · lr {record.config.lr:.3g}: {outcome(record)}"
        self._progress.console.print(text, highlight=False, soft_wrap=True)


def _name(config: RunConfig) -> str:
    return f"{config.task} · {OPTIMIZERS[config.optimizer].label} · seed {config.seed}"


def _begin_worker(steps: Any, stop: Any, parent: int) -> None:
    """Ctrl-C reaches every process of a terminal; the parent alone acts on it, and tells by `stop`."""
    global _channel
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    steps.cancel_join_thread()  # nobody may be listening any more when this process ends
    _channel = steps, stop, parent


_channel: tuple[Any, Any, int]


def end_without(parent: int) -> None:
    """End this process if its parent is gone: another may go on with its run."""
    if os.getppid() != parent:
        os._exit(1)


def _train(plan: Plan) -> Record:
    """One run, in a process of its own, which ends with its parent."""
    config, folder, tuning = plan
    steps, stop, parent = _channel

    def watch(step: int, loss: float, lr: float) -> None:
        end_without(parent)
        if stop.is_set():
            raise KeyboardInterrupt
        steps.put((str(folder), step, loss, lr))

    return runner.train(config, folder, tuning, watch)


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
    with Progress(*texts, TimeRemainingColumn(), console=Console(quiet=not ranks.first())) as progress:
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
