"""`sgd-sai sweep`: every learning rate with every weight decay, for the robustness of optimizers to both.

Weight decay λ is decoupled for all: a step at the peak learning rate η shrinks a decayed weight by η λ.
Optuna keeps the trials, in a file of the folder or in any storage of its own, which machines may share. In
each, one process claims points and tells results, and `--jobs` others train.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import TrialState
from rich.console import Console

from sgd_sai.cli import CommandError
from sgd_sai.lab import arguments, provenance, runner, sweep_page
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.records import Record, RunConfig, locked, write_aside
from sgd_sai.lab.study import end_without, outcome
from sgd_sai.lab.tasks import ALL

Point = tuple[float, float]  # lr, weight decay
GROWTHS = 4  # of a grid, at most
LARGEST = 1e9  # of either, for Optuna, which wants an end
BEAT = 20.0  # seconds between two signs of life
SILENCE = 300.0  # seconds after which a process of another machine is taken for dead
CLAIMING = 10.0  # seconds between having a trial and putting one's name to it, at most
#: States of a trial whose point is taken.
HELD = (TrialState.RUNNING, TrialState.COMPLETE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sgd-sai sweep`."""
    arguments.add_shared(parser)
    parser.add_argument("--lr", default="0.1,0.01,0.001,0.0001", metavar="X,X", help="the learning rates")
    parser.add_argument(
        "--weight-decay", default="0.5,0.05,0.005,0.0005,5e-05", metavar="X,X", help="the λ; 0 is allowed"
    )
    parser.add_argument("--seed", default="0", metavar="N", help="of every run (default: 0)")
    parser.add_argument("--jobs", default="1", metavar="N", help="runs at a time (default: 1)")
    parser.add_argument(
        "--widen",
        action="store_true",
        help="while the best point is on an edge, let the grid grow there, four times at most",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="Optuna's storage, which several machines may share (default: SQLite, sweep.db in DIR)",
    )


def run(args: argparse.Namespace) -> int:
    """Run what is left of the grids and draw them; 0."""
    arguments.check_alone("sweep")
    tasks = arguments.tasks(args.task, args.scale, args.data)
    optimizers = arguments.optimizers(args.optimizer)
    rates = [arguments.learning_rate("--lr", word.strip()) for word in args.lr.split(",")]
    decays = [_decay(word.strip()) for word in args.weight_decay.split(",")]
    seed, jobs = (
        arguments.integer("--seed", args.seed, least=0),
        arguments.integer("--jobs", args.jobs, least=1, most=arguments.MOST_AT_ONCE),
    )
    steps = None if args.steps is None else arguments.integer("--steps", args.steps, least=1)
    threads = arguments.threads(args.threads, jobs)
    default = Path("runs", "sweep-" + provenance.now()[:19].replace(":", ""))
    out = arguments.folder(args.out, args.resume, default)
    arguments.check_data(tasks, args.data)
    arguments.make_folder(out)
    url = args.storage or f"sqlite:///{out / 'sweep.db'}"
    data = None if args.data is None else str(args.data)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with _alone(url):
            storage = optuna.storages.get_storage(url)
    except Exception as error:  # as many kinds as there are storages
        raise CommandError(f"--storage: cannot open {url}: {str(error).splitlines()[0]}") from None
    axes = Axes(sorted(set(rates)), sorted(set(decays)))
    failed = 0
    try:
        for task, optimizer in product(tasks, optimizers):
            config = RunConfig(task, optimizer, seed, steps or ALL[task].steps, 0.0, data, threads, 0.0)
            _check_resumable(config, axes, out)
            sweep = Sweep(
                f"{task}-{optimizer}-{seed}", storage, axes, _identity(config), partial(_alone, url)
            )
            failed += _sweep(sweep, config, out, jobs, GROWTHS if args.widen else 0)
    finally:
        if any(out.glob("*/run.json")):
            runs = read_runs([out])
            write_aside(out / "sweep.html", sweep_page.page(runs))
            write_aside(out / "sweep.png", sweep_page.figure(runs))
            print(f"report: {out / 'sweep.html'}\nfigure: {out / 'sweep.png'}")
    return 1 if failed else 0


@dataclass(frozen=True)
class Axes:
    """The grid's learning rates and weight decays, rising."""

    rates: list[float]
    decays: list[float]

    @property
    def points(self) -> list[Point]:
        """All of the grid."""
        return list(product(self.rates, self.decays))

    def grown(self, best: Point) -> Axes | None:
        """One value more beyond each edge that `best` is on; None where it is on none.

        An axis of one value has no edge, and no decay is less than 0.
        """
        rates, decays = _grown(self.rates, best[0]), _grown(self.decays, best[1])
        return None if (rates, decays) == (self.rates, self.decays) else Axes(rates, decays)


def _grown(values: list[float], best: float) -> list[float]:
    if len(values) < 2 or best not in (values[0], values[-1]) or best == 0:
        return values
    inner = values[1] if best == values[0] else values[-2]
    beyond = float(f"{best * best / inner:.3g}") if inner else 10 * best
    return sorted([*values, beyond])


class Sweep:
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
            self.study = optuna.create_study(
                study_name=name, storage=storage, direction="minimize", load_if_exists=True
            )
        held = self.study.user_attrs.get("identity", identity)
        if held != identity:
            differences = [
                f"{key} {held[key]}, not {identity[key]}" for key in held if held[key] != identity[key]
            ]
            raise CommandError(f"--resume: the sweep {name} has runs with {', '.join(differences)}")
        self.study.set_user_attr("identity", identity)

    def claim(self) -> tuple[optuna.Trial, Point] | None:
        """A point for this process alone, or None where all others are done or in work."""
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
            trial = self.study.ask()
            trial.set_user_attr("owner", [socket.gethostname(), os.getpid(), _started(os.getpid())])
            self.beat(trial)
            frozen = next(other for other in self._trials(*HELD) if other.number == trial.number)
            if "fixed_params" not in frozen.system_attrs:  # another process has had the last that waited
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            point = trial.suggest_float("lr", 0.0, LARGEST), trial.suggest_float("weight_decay", 0.0, LARGEST)
            twins = [other for other in self._trials(*HELD) if _point(other) == point]
            first = min(twins, key=lambda other: (other.state != TrialState.COMPLETE, other.number))
            if first.number == trial.number:
                return trial, point
            self.study.tell(trial, state=TrialState.FAIL)

    def beat(self, trial: optuna.Trial) -> None:
        """Say that the trial's process is alive."""
        trial.set_user_attr("seen", time.time())

    def tell(self, trial: optuna.Trial, record: Record | None) -> None:
        """Its result: the loss, or what is not accurate; infinity if it diverged; None: the run failed."""
        state, value = TrialState.COMPLETE, math.inf
        if record is None:
            state = TrialState.FAIL
            self.failed.add(_point(trial))
        elif record.status == "finished" and record.result is not None:
            by_accuracy = record.task["metric"] == "val_accuracy"
            value = 1 - record.result["val_accuracy"] if by_accuracy else record.result["val_loss"]
        with suppress(ValueError, RuntimeError):  # taken for dead, it was given to another process
            self.study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)

    @property
    def best(self) -> Point | None:
        """The point of the grid with the best result; None if all diverged."""
        finite = [t for t in self._trials(TrialState.COMPLETE) if t.value is not None and t.value < math.inf]
        here = [trial for trial in finite if _point(trial) in self.axes.points]
        return _point(min(here, key=lambda trial: trial.value)) if here else None

    def _trials(self, *states: TrialState) -> list[Any]:
        found: list[Any] = self.study.get_trials(deepcopy=False, states=states)
        return found

    def _take_back(self) -> None:
        """Fail the trials whose process is gone: their points are entered again."""
        for trial in self._trials(TrialState.RUNNING):
            if not _alive(trial):
                with suppress(ValueError, RuntimeError):  # another process was faster
                    self.study.tell(trial.number, state=TrialState.FAIL)

    def _enter(self) -> None:
        """A waiting trial for each point of the grid that no trial has."""
        held = {_point(trial) for trial in self._trials(*HELD, TrialState.WAITING)} | self.failed
        for lr, decay in self.axes.points:
            if (lr, decay) not in held:
                self.study.enqueue_trial({"lr": lr, "weight_decay": decay})


def _alone(url: str) -> AbstractContextManager[None]:
    """Keep other processes out of a SQLite file, whose transactions begin too late to do so."""
    file = url.removeprefix("sqlite:///")
    return nullcontext() if file == url else locked(Path(file + ".lock"))


def _point(trial: Any) -> Point:
    params = trial.params or trial.system_attrs.get("fixed_params", {})  # before it is asked for
    return params.get("lr", math.nan), params.get("weight_decay", math.nan)


def _alive(trial: Any) -> bool:
    """Whether the process that has claimed a trial goes on: here by its number, elsewhere by its sign."""
    host, process, started = trial.user_attrs.get("owner", (None, 0, None))
    if host == socket.gethostname():
        return bool(_started(process) == started)
    begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    patience = SILENCE if host else CLAIMING
    return time.time() - float(trial.user_attrs.get("seen", begun)) < patience


def _started(process: int) -> float | None:
    """When a process of this machine began; None if there is none of that number."""
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except psutil.NoSuchProcess:
        return None


def _sweep(sweep: Sweep, first: RunConfig, out: Path, jobs: int, growths: int) -> int:
    """Train the points that are left, `jobs` at a time, on a grid that may grow; how many runs failed."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while True:
            _run_all(sweep, first, out, jobs, pool)
            grown = sweep.axes.grown(sweep.best) if sweep.best else None
            if grown is None:
                break
            where = "lr {:g} · λ {:g}".format(*sweep.best or ())
            _say(first, f"{where} is best, and on an edge of the grid")
            if not growths:
                break
            growths -= 1
            sweep.axes = grown
    return len(sweep.failed)


def _run_all(sweep: Sweep, first: RunConfig, out: Path, jobs: int, pool: ProcessPoolExecutor) -> None:
    running: dict[Future[Record], optuna.Trial] = {}
    while True:
        while len(running) < jobs and (claimed := sweep.claim()):
            trial, point = claimed
            config = _at(first, point)
            running[pool.submit(_train, config, _folder(config, out), os.getpid())] = trial
        if not running:
            return
        ended, _ = wait(running, timeout=BEAT, return_when=FIRST_COMPLETED)
        for future in ended:
            trial = running.pop(future)
            where = "lr {:g} · λ {:g}".format(*_point(trial))
            try:
                record = future.result()
            except Exception as error:
                sweep.tell(trial, None)
                _say(
                    first, f"{where}: failed, {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                )
                if isinstance(error, BrokenProcessPool):
                    raise CommandError("a process of the sweep was killed; --resume goes on") from None
                continue
            sweep.tell(trial, record)
            _say(first, f"{where}: {outcome(record)}")
        for trial in running.values():
            sweep.beat(trial)


def _say(config: RunConfig, what: str) -> None:
    Console().print(
        f"{config.task} · {config.optimizer} · {what}", highlight=False, markup=False, soft_wrap=True
    )


def _at(config: RunConfig, point: Point) -> RunConfig:
    return replace(config, lr=point[0], weight_decay=point[1])


def _folder(config: RunConfig, out: Path) -> Path:
    of_point = f"lr{config.lr:g}-wd{config.weight_decay:g}"
    return out / f"{config.task}-{config.optimizer}-{config.seed}-{of_point}"


def _identity(config: RunConfig) -> dict[str, Any]:
    """What all runs of a sweep share, on whatever machine."""
    return {"steps": config.steps, "data": runner.load(config.task, config.data).data}


def _check_resumable(config: RunConfig, axes: Axes, out: Path) -> None:
    for point in axes.points:
        at = _at(config, point)
        try:
            runner.check_resumable(at, _folder(at, out))
        except ValueError as error:
            raise CommandError(str(error)) from None


def _train(config: RunConfig, folder: Path, parent: int) -> Record:
    """One run, in a process of its own, which ends with its parent."""
    return runner.train(config, folder, None, lambda *_: end_without(parent))


def _decay(given: str) -> float:
    return 0.0 if given in ("0", "0.0") else arguments.learning_rate("--weight-decay", given)
