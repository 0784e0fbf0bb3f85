"""`sgd-sai sweep` on the command line.

Weight decay λ is decoupled for all: a step at the peak learning rate η shrinks a decayed weight by η λ. In
each machine that takes part, one process claims points and tells results, and `--jobs` others train.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import optuna

from sgd_sai.cli import CommandError
from sgd_sai.cli.console import print_line
from sgd_sai.cli.secrets import scrubbed, shown_address
from sgd_sai.files import write_aside
from sgd_sai.lab import arguments
from sgd_sai.lab.faults import faults_told, then_reported
from sgd_sai.lab.numbers import exact
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.records import Record, RunConfig
from sgd_sai.lab.runs import runner
from sgd_sai.lab.runs.run_pool import outcome
from sgd_sai.lab.runs.workers import PlannedRun, Step, WorkerDied, Workers
from sgd_sai.lab.sweep import page
from sgd_sai.lab.sweep.axes import Axes, Point
from sgd_sai.lab.sweep.trials import Trials, alone, point_of
from sgd_sai.lab.tasks import ALL

GROWTHS = 4  # of a grid, at most
BEAT = 20.0  # seconds between two signs of life


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sgd-sai sweep`."""
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
    """Carry out the runs of the grids that are not finished, and draw the grids; 0."""
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
    out = arguments.folder(args.out, args.resume, arguments.new_folder("sweep"))
    data = None if args.data is None else str(args.data)
    axes = Axes(sorted(set(rates)), sorted(set(decays)))
    grids = [
        RunConfig(task, optimizer, seed, steps or ALL[task].steps, 0.0, data, threads, 0.0)
        for task, optimizer in product(tasks, optimizers)
    ]
    arguments.check_data(tasks, args.data)
    with faults_told("--out", out):
        for each in grids:
            _check_resumable(each, axes, out)
    arguments.make_folder(out, args.resume)
    url = args.storage or f"sqlite:///{out / 'sweep.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with alone(url):
            storage = optuna.storages.get_storage(url)
    except Exception as error:  # as many kinds as there are storages
        why = scrubbed((str(error).splitlines() or [type(error).__name__])[0], url)
        raise CommandError(f"--storage: cannot open {shown_address(url)}: {why}") from None
    failed = 0
    with faults_told("--out", out), then_reported(partial(_report, out)):
        for config in grids:
            name = f"{config.task}-{config.optimizer}-{config.seed}"
            trials = Trials(name, storage, axes, _identity(config), partial(alone, url))
            failed += _complete(trials, config, out, jobs, GROWTHS if args.widen else 0)
    return 1 if failed else 0


def _report(out: Path) -> None:
    if any(out.glob("*/run.json")):
        runs = read_runs([out])
        write_aside(out / "sweep.html", page.page(runs))
        write_aside(out / "sweep.png", page.figure(runs))
        print_line(f"report: {out / 'sweep.html'}")
        print_line(f"figure: {out / 'sweep.png'}")


def _complete(trials: Trials, first: RunConfig, out: Path, jobs: int, growths: int) -> int:
    """Train the points that are left, `jobs` at a time, on a grid that may grow; return how many failed."""
    with Workers(jobs) as workers:
        while True:
            _run_all(trials, first, out, workers)
            grown = trials.axes.grown(trials.best) if trials.best else None
            if grown is None:
                break
            where = _shown(trials.best or trials.axes.points[0])
            _say(first, f"{where} is best, and on an edge of the grid")
            if not growths:
                break
            growths -= 1
            trials.axes = grown
    return len(trials.failed)


def _run_all(trials: Trials, first: RunConfig, out: Path, workers: Workers) -> None:
    running: dict[str, optuna.Trial] = {}
    beaten = time.monotonic()
    while True:
        while workers.free and (claimed := trials.claim()):
            trial, point = claimed
            config = _at(first, point)
            planned = PlannedRun(config, _folder(config, out))
            running[str(planned.folder)] = trial
            workers.begin(planned)
        if not running:
            return
        for each, news in workers.hear():
            if not isinstance(news, Step):
                _ended(trials, running.pop(str(each.folder)), each.config, news)
        if time.monotonic() - beaten > BEAT:
            beaten = time.monotonic()
            for trial in running.values():
                trials.beat(trial)


def _ended(trials: Trials, trial: optuna.Trial, config: RunConfig, found: Record | Exception) -> None:
    """Enter how the run of a trial ended, and say so."""
    if isinstance(found, Record):
        trials.tell(trial, found)
        said = outcome(found)
    else:
        trials.tell(trial, None)
        kind = "" if isinstance(found, WorkerDied) else f"{type(found).__name__}: "
        said = f"failed, {kind}{(str(found).splitlines() or [''])[0]}"
    _say(config, f"{_shown(point_of(trial))}: {said}")


def _say(config: RunConfig, text: str) -> None:
    print_line(f"{config.task} · {config.optimizer} · {text}")


def _at(config: RunConfig, point: Point) -> RunConfig:
    return replace(config, lr=point[0], weight_decay=point[1])


def _folder(config: RunConfig, out: Path) -> Path:
    of_point = f"lr{exact(config.lr)}-wd{exact(config.weight_decay or 0.0)}"
    return out / f"{config.task}-{config.optimizer}-{config.seed}-{of_point}"


def _shown(point: Point) -> str:
    return f"lr {exact(point[0])} · λ {exact(point[1])}"


def _identity(config: RunConfig) -> dict[str, Any]:
    """Return the conditions that all runs of a sweep share, on whatever machine."""
    return {"steps": config.steps, "data": runner.load(config.task, config.data).data}


def _check_resumable(config: RunConfig, axes: Axes, out: Path) -> None:
    for point in axes.points:
        at = _at(config, point)
        runner.held(at, _folder(at, out))


def _decay(given: str) -> float:
    return 0.0 if given in ("0", "0.0") else arguments.learning_rate("--weight-decay", given)
