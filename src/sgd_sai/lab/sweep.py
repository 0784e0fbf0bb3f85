"""`sgd-sai sweep`: every learning rate with every weight decay, for the robustness of optimizers to both.

Weight decay λ is decoupled for all: a step at the peak learning rate η shrinks a decayed weight by η λ.
Optuna keeps the trials, in a file of the folder or in any storage of its own; one process asks for points and
tells results, so that no point is run twice, and `--jobs` others train.
"""

from __future__ import annotations

import argparse
import math
import os
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console

from sgd_sai.cli import CommandError
from sgd_sai.lab import arguments, provenance, runner, sweep_page
from sgd_sai.lab.records import Record, RunConfig, read_runs, write_aside
from sgd_sai.lab.study import outcome
from sgd_sai.lab.tasks import ALL

Point = tuple[float, float]  # lr, weight decay


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
        "--storage",
        metavar="URL",
        help="Optuna's storage (default: SQLite, sweep.db in the folder of the runs)",
    )


def run(args: argparse.Namespace) -> int:
    """Run what is left of the grids and draw them; 0."""
    tasks = arguments.tasks(args.task, args.scale, args.data)
    optimizers = arguments.optimizers(args.optimizer)
    rates = [arguments.learning_rate("--lr", word.strip()) for word in args.lr.split(",")]
    decays = [_decay(word.strip()) for word in args.weight_decay.split(",")]
    seed, jobs = (
        arguments.integer("--seed", args.seed, least=0),
        arguments.integer("--jobs", args.jobs, least=1),
    )
    steps = None if args.steps is None else arguments.integer("--steps", args.steps, least=1)
    threads = arguments.threads(args.threads)
    default = Path("runs", "sweep-" + provenance.now()[:19].replace(":", ""))
    out = arguments.folder(args.out, args.resume, default)
    arguments.check_data(tasks, args.data)
    arguments.make_folder(out)
    url = args.storage or f"sqlite:///{out / 'sweep.db'}"
    data = None if args.data is None else str(args.data)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.get_storage(url)
    except Exception as error:  # as many kinds as there are storages
        raise CommandError(f"--storage: cannot open {url}: {str(error).splitlines()[0]}") from None
    grid = {"lr": sorted(set(rates)), "weight_decay": sorted(set(decays))}
    try:
        for task, optimizer in product(tasks, optimizers):
            name = f"{task}-{optimizer}-{seed}"
            first = RunConfig(task, optimizer, seed, steps or ALL[task].steps, 0.0, data, threads, 0.0)
            _sweep(Sweep(name, storage, grid), first, out, jobs)
    finally:
        if any(out.glob("*/run.json")):
            runs = read_runs([out])
            write_aside(out / "sweep.html", sweep_page.page(runs))
            write_aside(out / "sweep.png", sweep_page.figure(runs))
            print(f"report: {out / 'sweep.html'}\nfigure: {out / 'sweep.png'}")
    return 0


class _GridSampler(optuna.samplers.GridSampler):  # type: ignore[misc]
    """Optuna's, asked and told: it would stop `study.optimize` after its last point, which is not running."""

    def after_trial(self, *args: Any) -> None:
        """Nothing."""


class Sweep:
    """One grid of Optuna's: what is left of it, and what has come out."""

    def __init__(self, name: str, storage: Any, grid: dict[str, list[float]]) -> None:
        """Open or create the study `name`; points that a killed process left are free again."""
        self.grid = grid
        self.study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=_GridSampler(grid, seed=0),
            direction="minimize",
            load_if_exists=True,
        )
        self._take_back()

    def _take_back(self) -> None:
        """Give the points back whose process was killed. In this order, a kill in between loses none."""
        waiting = [
            trial.system_attrs["fixed_params"]
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        ]
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            lost = trial.params or trial.system_attrs.get("fixed_params", {})
            if lost and lost not in waiting:
                self.study.enqueue_trial(lost)
            self.study.tell(trial.number, state=TrialState.FAIL)

    @property
    def done(self) -> set[Point]:
        """The points that have a result."""
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {(trial.params["lr"], trial.params["weight_decay"]) for trial in finished}

    @property
    def left(self) -> int:
        """How many points of the grid have none."""
        return len(set(product(self.grid["lr"], self.grid["weight_decay"])) - self.done)

    def ask(self) -> tuple[optuna.Trial, Point]:
        """The next point."""
        trial = self.study.ask()
        lr, decay = (trial.suggest_categorical(name, values) for name, values in self.grid.items())
        return trial, (float(lr), float(decay))

    def tell(self, trial: optuna.Trial, record: Record) -> None:
        """Its result: the loss, or what is not accurate; infinity if it diverged."""
        value = math.inf
        if record.status == "finished" and record.result is not None:
            by_accuracy = record.task["metric"] == "val_accuracy"
            value = 1 - record.result["val_accuracy"] if by_accuracy else record.result["val_loss"]
        self.study.tell(trial, value)


def _sweep(sweep: Sweep, first: RunConfig, out: Path, jobs: int) -> None:
    """Train the points that are left, `jobs` at a time."""
    console = Console()
    running: dict[Future[Record], optuna.Trial] = {}
    left = sweep.left
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while left or running:
            while left and len(running) < jobs:
                trial, (lr, decay) = sweep.ask()
                config = _at(first, lr, decay)
                folder = out / f"{config.task}-{config.optimizer}-{config.seed}-lr{lr:g}-wd{decay:g}"
                running[pool.submit(_train, config, folder, os.getpid())] = trial
                left -= 1
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                record = future.result()
                sweep.tell(running.pop(future), record)
                config = record.config
                console.print(
                    f"{config.task} · {config.optimizer} · lr {config.lr:g} · λ {config.weight_decay:g}: "
                    f"{outcome(record)}",
                    highlight=False,
                    soft_wrap=True,
                )


def _at(config: RunConfig, lr: float, decay: float) -> RunConfig:
    return replace(config, lr=lr, weight_decay=decay)


def _train(config: RunConfig, folder: Path, parent: int) -> Record:
    """One run, in a process of its own, which ends with its parent: another may go on with the run."""

    def watch(step: int, loss: float, lr: float) -> None:
        if os.getppid() != parent:
            os._exit(1)

    return runner.train(config, folder, None, watch)


def _decay(given: str) -> float:
    return 0.0 if given in ("0", "0.0") else arguments.learning_rate("--weight-decay", given)
