"""The points of a sweep in Optuna's storage: a file of the folder, or a storage that machines share."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import TrialState

from sgd_sai.cli import CommandError
from sgd_sai.files import locked
from sgd_sai.lab.records import Record
from sgd_sai.lab.sweep.axes import Axes, Point

LARGEST = 1e9  # of either, for Optuna, which wants an end
SILENCE = 300.0  # seconds after which a process of another machine is taken for dead
CLAIMING = 10.0  # seconds between having a trial and putting one's name to it, at most
#: States of a trial whose point is taken.
HELD = (TrialState.RUNNING, TrialState.COMPLETE)


class Trials:
    """One grid in Optuna's storage, where other processes may work on it too.

    Each point is a trial that waits until a process claims it. Optuna lets one process alone have a waiting
    trial, on SQLite only with a lock around it; of two trials of one point, which two processes may have
    entered at once, the later is dropped.
    """

    def __init__(
        self,
        name: str,
        storage: Any,
        axes: Axes,
        identity: dict[str, Any],
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Open or create the study `name`; CommandError if it holds runs of another `identity`.

        `alone` keeps the other processes of a storage out that cannot do so itself.
        """
        self.axes = axes
        self.failed: set[Point] = set()  # here, and not to be tried here again
        self._alone = alone
        with alone():
            self.optuna_study = optuna.create_study(
                study_name=name, storage=storage, direction="minimize", load_if_exists=True
            )
        held = self.optuna_study.user_attrs.get("identity", identity)
        if held != identity:
            differences = [
                f"{key} {held[key]}, not {identity[key]}" for key in held if held[key] != identity[key]
            ]
            raise CommandError(f"--resume: the sweep {name} has runs with {', '.join(differences)}")
        self.optuna_study.set_user_attr("identity", identity)

    def claim(self) -> tuple[optuna.Trial, Point] | None:
        """Return a point for this process alone, or None where all others are done or in work."""
        with self._alone():
            return self._claim()

    def _claim(self) -> tuple[optuna.Trial, Point] | None:
        while True:
            self._take_back()
            self._enter()
            if not self._trials(TrialState.WAITING):
                if any("owner" not in trial.user_attrs for trial in self._trials(TrialState.RUNNING)):
                    time.sleep(1.0)  # it is being claimed, or its process died just there
                    continue
                return None
            trial = self.optuna_study.ask()
            trial.set_user_attr("owner", [socket.gethostname(), os.getpid(), _started(os.getpid())])
            self.beat(trial)
            frozen = next(other for other in self._trials(*HELD) if other.number == trial.number)
            if "fixed_params" not in frozen.system_attrs:  # another process has had the last that waited
                self.optuna_study.tell(trial, state=TrialState.FAIL)
                continue
            point = trial.suggest_float("lr", 0.0, LARGEST), trial.suggest_float("weight_decay", 0.0, LARGEST)
            twins = [other for other in self._trials(*HELD) if point_of(other) == point]
            first = min(twins, key=lambda other: (other.state != TrialState.COMPLETE, other.number))
            if first.number == trial.number:
                return trial, point
            self.optuna_study.tell(trial, state=TrialState.FAIL)

    def beat(self, trial: optuna.Trial) -> None:
        """Record that the trial's process is alive."""
        trial.set_user_attr("seen", time.time())

    def tell(self, trial: optuna.Trial, record: Record | None) -> None:
        """Enter the result: the loss, or 1 − accuracy; infinity if the run diverged. `None`: it failed."""
        state, value = TrialState.COMPLETE, math.inf
        if record is None:
            state = TrialState.FAIL
            self.failed.add(point_of(trial))
        elif record.status == "finished" and record.result is not None:
            by_accuracy = record.task["metric"] == "val_accuracy"
            value = 1 - record.result["val_accuracy"] if by_accuracy else record.result["val_loss"]
        with suppress(ValueError, RuntimeError):  # taken for dead, it was given to another process
            self.optuna_study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)

    @property
    def best(self) -> Point | None:
        """The point of the grid with the best result; None if all diverged."""
        finite = [t for t in self._trials(TrialState.COMPLETE) if t.value is not None and t.value < math.inf]
        here = [trial for trial in finite if point_of(trial) in self.axes.points]
        return point_of(min(here, key=lambda trial: trial.value)) if here else None

    def _trials(self, *states: TrialState) -> list[Any]:
        found: list[Any] = self.optuna_study.get_trials(deepcopy=False, states=states)
        return found

    def _take_back(self) -> None:
        """Fail the trials whose process is gone: their points are entered again."""
        for trial in self._trials(TrialState.RUNNING):
            if not _alive(trial):
                with suppress(ValueError, RuntimeError):  # another process was faster
                    self.optuna_study.tell(trial.number, state=TrialState.FAIL)

    def _enter(self) -> None:
        """A waiting trial for each point of the grid that no trial has."""
        held = {point_of(trial) for trial in self._trials(*HELD, TrialState.WAITING)} | self.failed
        for lr, decay in self.axes.points:
            if (lr, decay) not in held:
                self.optuna_study.enqueue_trial({"lr": lr, "weight_decay": decay})


def alone(url: str) -> AbstractContextManager[None]:
    """Keep other processes out of a SQLite file, whose transactions begin too late to do so."""
    file = url.removeprefix("sqlite:///")
    return nullcontext() if file == url else locked(Path(file + ".lock"))


def point_of(trial: Any) -> Point:
    """Return the learning rate and the weight decay of a trial, also of one that waits."""
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    return params.get("lr", math.nan), params.get("weight_decay", math.nan)


def _alive(trial: Any) -> bool:
    """Return whether the process that claimed a trial goes on: here by its number, elsewhere by its sign."""
    host, process, started = trial.user_attrs.get("owner", (None, 0, None))
    if host == socket.gethostname():
        return bool(_started(process) == started)
    begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    patience = SILENCE if host else CLAIMING
    return time.time() - float(trial.user_attrs.get("seen", begun)) < patience


def _started(process: int) -> float | None:
    """Return when a process of this machine began; None if there is none of that number."""
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except psutil.NoSuchProcess:
        return None
