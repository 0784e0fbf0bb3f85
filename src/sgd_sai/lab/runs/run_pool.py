"""Several runs, one after another or side by side in processes, with a progress bar."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sgd_sai.lab.numbers import exact
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Record, RunConfig
from sgd_sai.lab.runs import processes, runner


class PlannedRun(NamedTuple):
    """A run to do, or to go on with.

    Attributes:
        config: its configuration.
        folder: where its files are.
        tuning: where its learning rate comes from, for the record.
    """

    config: RunConfig
    folder: Path
    tuning: dict[str, Any] | None = None


class RunPool:
    """Runs, with a line for each that ends and a bar for each that goes on and for all."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        """`total`: steps of all runs, or None where their number is not known."""
        self._progress = progress
        self._all = progress.add_task("all runs", total=total, loss="", lr="")
        self._ended = 0  # steps of the runs that have ended
        self._bars: dict[TaskID, int] = {}  # of the others, with the steps done

    def run(self, planned: PlannedRun) -> Record:
        """Carry out one run, or the rest of it."""
        bar = self._begin(planned.config)
        try:
            record = runner.train(*planned, lambda step, loss, lr: self._follow(bar, step, loss, lr))
        except BaseException:
            self._progress.remove_task(bar)
            raise
        self._end(bar, record)
        return record

    def run_all(self, planned: Sequence[PlannedRun], jobs: int) -> None:
        """Carry out the runs, `jobs` at a time, each in a process if there is more than one.

        Raises:
            KeyboardInterrupt: every run that was begun has stopped between two steps, and can be resumed.
        """
        if jobs == 1:
            for each in planned:
                self.run(each)
            return
        context = get_context("spawn")
        steps, stop = context.Queue(), context.Event()
        waiting = list(reversed(planned))
        running: dict[str, tuple[Future[Record], TaskID]] = {}
        with ProcessPoolExecutor(jobs, context, _begin_worker, (steps, stop)) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        each = waiting.pop()
                        running[str(each.folder)] = pool.submit(_train, each), self._begin(each.config)
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
        bar = self._progress.add_task(_name(config), total=config.steps, loss="", lr=f"lr {exact(config.lr)}")
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
        text = f"{_name(record.config)} · lr {exact(record.config.lr)}: {outcome(record)}"
        self._progress.console.print(text, highlight=False, soft_wrap=True)


def _name(config: RunConfig) -> str:
    return f"{config.task} · {OPTIMIZERS[config.optimizer].label} · seed {config.seed}"


def _begin_worker(steps: Any, stop: Any) -> None:
    """Ctrl-C reaches every process of a terminal; the parent alone acts on it, and tells by `stop`."""
    global _channel
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    steps.cancel_join_thread()  # nobody may be listening any more when this process ends
    _channel = steps, stop
    end_with_parent()


_channel: tuple[Any, Any]


def end_with_parent() -> None:
    """From now on, end this process when its parent is gone: another may go on with its run.

    Also while it waits for a run: whoever waits on the pipe of a parent that was killed would wait forever.
    """
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _train(planned: PlannedRun) -> Record:
    """Carry out one run, in a process of its own."""
    steps, stop = _channel

    def watch(step: int, loss: float, lr: float) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        steps.put((str(planned.folder), step, loss, lr))

    return runner.train(*planned, watch)


@contextmanager
def run_pool(total: int | None = None) -> Iterator[RunPool]:
    """Yield a `RunPool` with its progress bar on the terminal."""
    columns = (
        "{task.description}",
        BarColumn(),
        "{task.percentage:3.0f}%",
        "{task.fields[loss]}",
        "{task.fields[lr]}",
    )
    texts = [TextColumn(each) if isinstance(each, str) else each for each in columns]
    with Progress(*texts, TimeRemainingColumn(), console=Console(quiet=not processes.first())) as progress:
        yield RunPool(progress, total)


def outcome(record: Record) -> str:
    """Return how a run ended, in a few words."""
    result = record.result
    if result is None:
        return record.status
    if record.status == "diverged":
        return f"diverged at step {result['diverged_at']}"
    accuracy = f", accuracy {result['val_accuracy']:.1%}" if record.task["metric"] == "val_accuracy" else ""
    return f"validation loss {result['val_loss']:.4f}{accuracy}, {result['seconds']:.0f} s"
