"""Several runs, one after another or side by side in processes, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sgd_sai.lab.numbers import exact
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Record, RunConfig
from sgd_sai.lab.runs import processes, runner
from sgd_sai.lab.runs.workers import PlannedRun, Step, WorkerDied, Workers


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

    def run_all(self, planned: Sequence[PlannedRun], jobs: int) -> int:
        """Carry out the runs, `jobs` at a time, each in a process if there is more than one.

        Returns:
            How many did not end, since their processes were killed; the others go on.

        Raises:
            KeyboardInterrupt: every run that was begun has stopped between two steps, and can be resumed.
        """
        if jobs == 1:
            for each in planned:
                self.run(each)
            return 0
        died = 0
        waiting, bars = list(reversed(planned)), dict[str, TaskID]()
        with Workers(jobs) as workers:
            while waiting or workers.busy:
                while waiting and workers.free:
                    each = waiting.pop()
                    bars[str(each.folder)] = self._begin(each.config)
                    workers.begin(each)
                for each, news in workers.hear():
                    bar = bars[str(each.folder)]
                    if isinstance(news, Step):
                        self._follow(bar, *news)
                    elif isinstance(news, Record):
                        self._end(bar, news)
                    elif isinstance(news, WorkerDied):
                        died += 1
                        self._drop(bar, each, news)
                    else:
                        raise news
        return died

    def _begin(self, config: RunConfig) -> TaskID:
        bar = self._progress.add_task(_name(config), total=config.steps, loss="", lr=f"lr {exact(config.lr)}")
        self._bars[bar] = 0
        return bar

    def _follow(self, bar: TaskID, step: int, loss: float, lr: float) -> None:
        self._bars[bar] = step
        self._progress.update(bar, completed=step, loss=f"loss {loss:.3f}", lr=f"lr {lr:.2e}")
        self._progress.update(self._all, completed=self._ended + sum(self._bars.values()))

    def _drop(self, bar: TaskID, planned: PlannedRun, why: WorkerDied) -> None:
        """Say that a run's process is gone, and how to go on."""
        del self._bars[bar]
        self._progress.remove_task(bar)
        how = f"--resume with --out {planned.folder.parent} goes on with it"
        print(f"sgd-sai: {_name(planned.config)}: {why}; {how}", file=sys.stderr)

    def _end(self, bar: TaskID, record: Record) -> None:
        del self._bars[bar]
        self._ended += record.config.steps
        self._progress.remove_task(bar)
        self._progress.update(self._all, completed=self._ended + sum(self._bars.values()))
        text = f"{_name(record.config)} · lr {exact(record.config.lr)}: {outcome(record)}"
        self._progress.console.print(text, highlight=False, soft_wrap=True)


def _name(config: RunConfig) -> str:
    return f"{config.task} · {OPTIMIZERS[config.optimizer].label} · seed {config.seed}"


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
