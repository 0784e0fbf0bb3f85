"""Processes that carry out runs, one each at a time, and end with the process that started them."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from sgd_sai.cli import ctrl_c, streams
from sgd_sai.lab.records import Record, RunConfig
from sgd_sai.lab.runs import runner


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


class Step(NamedTuple):
    """A step that a run has taken."""

    step: int
    loss: float
    lr: float


class WorkerDied(Exception):
    """The process of a run is gone without a word: it was killed, or it crashed. One line."""


@dataclass
class _Worker:
    """A process, the channel to it, its run, if it has one, and whether that has taken a step here."""

    process: BaseProcess
    channel: Connection
    planned: PlannedRun | None = None
    stepped: bool = False


class Workers:
    """At most so many processes that carry out runs, started as they are needed. Used as a context.

    When the context ends, runs in progress stop between two steps and can be resumed; one that has not taken
    a step yet is broken off.
    """

    def __init__(self, most: int) -> None:
        """`most`: runs at a time."""
        self._most = most
        self._workers: list[_Worker] = []
        self._context = ExitStack()

    @property
    def busy(self) -> int:
        """How many runs are in progress."""
        return sum(worker.planned is not None for worker in self._workers)

    @property
    def free(self) -> bool:
        """Whether another run can begin."""
        return self.busy < self._most

    def begin(self, planned: PlannedRun) -> None:
        """Have one of the processes carry out a run."""
        worker = next((each for each in self._workers if each.planned is None), None) or self._start()
        worker.planned, worker.stepped = planned, False
        _tell(worker, planned)

    def hear(self, timeout: float = 0.2) -> list[tuple[PlannedRun, Step | Record | Exception]]:
        """Return what runs tell, after at most so many seconds: a step, or the end.

        Raises:
            KeyboardInterrupt: Ctrl-C has been pressed since the context began.
        """
        self._heed()
        heard = []
        for worker in self._telling(timeout):
            planned, news = worker.planned, self._news(worker)
            if planned is not None:
                heard.append((planned, news))
        return heard

    def __enter__(self) -> Workers:
        """Hold Ctrl-C back: in the middle of what is said between processes it could leave them waiting."""
        self._heed = self._context.enter_context(ctrl_c.held())
        self._context.callback(self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop what is in progress, and wait for the processes to end."""
        self._context.close()
        if kind is None:
            self._heed()

    def _stop(self) -> None:
        for worker in self._workers:
            if worker.planned is not None and not worker.stepped:
                worker.process.kill()
            else:
                _tell(worker, None)
        while self._workers:  # a run may tell of a last step, and that it has ended
            for worker in self._telling():
                self._news(worker)

    def _telling(self, timeout: float | None = None) -> list[_Worker]:
        told = wait([worker.channel for worker in self._workers], timeout)
        return [worker for worker in self._workers if worker.channel in told]

    def _start(self) -> _Worker:
        spawn = get_context("spawn")
        here, there = spawn.Pipe()
        process = spawn.Process(target=_work, args=(there,))
        with _deaf_to_ctrl_c():
            process.start()
        there.close()  # so that the channel ends with the process
        self._workers.append(_Worker(process, here))
        return self._workers[-1]

    def _news(self, worker: _Worker) -> Step | Record | Exception:
        """Return what a worker has told, at its end that it died."""
        try:
            news, trace = worker.channel.recv()
        except (EOFError, OSError):
            self._workers.remove(worker)
            worker.channel.close()
            worker.process.join()
            return WorkerDied(_death(worker.process.exitcode or 0))
        if isinstance(news, Step):
            worker.stepped = True
        else:
            worker.planned = None
        if isinstance(news, Exception):
            news.__cause__ = RuntimeError(f"in the process of the run:\n{trace}")
        told: Step | Record | Exception = news
        return told


def told_to_stop() -> bool:
    """Return whether the process that started this worker wants its run to stop."""
    return _channel is not None and _channel.poll()


_channel: Connection | None = None  # of a worker, to the process that started it


def _work(channel: Connection) -> None:
    """Carry out one run after the other, in a process of its own, until told to stop."""
    global _channel
    _channel = channel
    _end_with_parent()
    with streams.patient(), suppress(KeyboardInterrupt, EOFError, OSError):
        while (planned := channel.recv()) is not None:
            channel.send(_carried_out(planned, channel))


def _carried_out(planned: PlannedRun, channel: Connection) -> tuple[Record | Exception, str]:
    """Return the record of a run, or why there is none, with the traceback."""

    def watch(step: int, loss: float, lr: float) -> None:
        if told_to_stop():
            raise KeyboardInterrupt
        channel.send((Step(step, loss, lr), ""))

    try:
        return runner.train(*planned, watch), ""
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a library, say, with a constructor of its own
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return error, traceback.format_exc()


def _end_with_parent() -> None:
    """From now on, end this process when its parent is gone: another may go on with its run.

    Also while it waits for a run: whoever waits on the pipe of a parent that was killed would wait forever.
    """
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Have what is started here not hear Ctrl-C, which reaches every process of a terminal.

    The parent alone acts on it. Blocked and not ignored, so that no press is lost here meanwhile.
    """
    resource_tracker.ensure_running()  # which unblocks it, where it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(worker: _Worker, what: PlannedRun | None) -> None:
    with suppress(OSError):  # it has just died, as its channel will tell
        worker.channel.send(what)


def _death(code: int) -> str:
    """Return how a process ended that was not to end."""
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
    return f"its process was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
