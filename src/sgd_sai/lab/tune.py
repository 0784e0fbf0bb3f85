"""`sgd-sai tune`: the learning rate of each optimizer on each task, by one rule for all.

The rule: five half-decades around the optimizer's usual learning rate, one run each with one seed that no
comparison uses. While the best of them lies on an edge, the grid grows there by half a decade. Then those
whose grid grew less get as many trials as the one whose grid grew most, at quarter-decades around their best:
the budgets of all that are named are equal. The best is by the task's held-out metric, then by the validation
loss. The result of every run is kept.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sgd_sai.cli import CommandError
from sgd_sai.lab import arguments, tuned
from sgd_sai.lab.faults import faults_told
from sgd_sai.lab.numbers import exact
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Record, RunConfig
from sgd_sai.lab.runs.run_pool import run_pool
from sgd_sai.lab.runs.workers import PlannedRun
from sgd_sai.lab.tasks import ALL

SEED = 100
HALF_WIDTH = 2  # points on each side of the usual learning rate
WIDEST = 8  # points on each side, after which the search gives up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sgd-sai tune`."""
    arguments.add_shared(parser)
    parser.add_argument(
        "--tuned", metavar="FILE", type=Path, default=Path("tuned.jsonl"), help="where to enter the result"
    )
    parser.add_argument("--missing", action="store_true", help="search only for what FILE lacks")


def run(args: argparse.Namespace) -> int:
    """Tune and enter the results; 0."""
    arguments.check_alone("tune")
    tasks = arguments.tasks(args.task, args.scale, args.data)
    optimizers = arguments.optimizers(args.optimizer)
    steps = None if args.steps is None else arguments.integer("--steps", args.steps, least=1)
    threads = arguments.threads(args.threads)
    out = arguments.folder(args.out, args.resume, arguments.new_folder("tune"))
    try:
        entries = tuned.read(args.tuned)
    except ValueError as error:
        raise CommandError(f"--tuned: {error}") from None
    if not args.tuned.parent.is_dir():
        raise CommandError(f"--tuned: the folder {args.tuned.parent} does not exist")
    arguments.check_data(tasks, args.data)
    arguments.make_folder(out, args.resume)
    data = None if args.data is None else str(args.data)
    with faults_told("--out", out), run_pool() as runs:
        for task in tasks:

            def train(optimizer: str, lr: float, task: str = task) -> Record:
                config = RunConfig(task, optimizer, SEED, steps or ALL[task].steps, lr, data, threads)
                return runs.run(PlannedRun(config, out / f"{task}-{optimizer}-{exact(lr)}"))

            for optimizer in optimizers:
                if not (args.missing and optimizer in entries.get(task, {})):
                    records = search(OPTIMIZERS[optimizer].start, partial(train, optimizer))
                    tuned.enter(args.tuned, task, optimizer, _entry(records))
            equalise(args.tuned, task, optimizers, train)
    return 0


def rate(start: float, half_decades: float) -> float:
    """`start` times √10 to a power, to three digits, as it is written and read."""
    return float(f"{start * 10 ** (half_decades / 2):.3g}")


def search(start: float, train: Callable[[float], Record]) -> list[Record]:
    """One record per learning rate, in rising order; the best one is not on an edge.

    CommandError if no edge is found, or nothing converges.
    """
    records = {k: train(rate(start, k)) for k in range(-HALF_WIDTH, HALF_WIDTH + 1)}
    while True:
        best = min(records, key=lambda k: _preference(records[k]))
        if records[best].status != "finished" or abs(best) > WIDEST:
            config = records[best].config
            raise CommandError(f"no learning rate was found for {config.optimizer} on {config.task}")
        if min(records) < best < max(records):
            return [records[k] for k in sorted(records)]
        wider = best - 1 if best == min(records) else best + 1
        records[wider] = train(rate(start, wider))


def equalise(path: Path, task: str, optimizers: list[str], train: Callable[[str, float], Record]) -> None:
    """Give each of the optimizers, named in the file, as many trials as the one that has the most."""
    trials = 0
    while True:
        entries = {optimizer: tuned.read(path)[task][optimizer] for optimizer in optimizers}
        most = max(len(entry["points"]) for entry in entries.values())
        short = [
            name
            for name, entry in entries.items()
            if len(entry["points"]) < most or tuned.on_edge(entry["lr"], entry["grid"])
        ]
        if not short or trials > WIDEST * len(optimizers):
            return
        for optimizer in short:
            entry = entries[optimizer]
            record = train(optimizer, following(entry["lr"], entry["grid"]))
            tuned.enter(path, task, optimizer, _with(entry, record))
            trials += 1


def following(best: float, grid: list[float]) -> float:
    """The next rate to try: beyond the edge if the best lies on it, else at a quarter-decade that is free.

    The nearest to the best inside the grid; beyond its ends where there is none inside.
    """
    if tuned.on_edge(best, grid):
        return rate(best, -1 if best == min(grid) else 1)
    # A quarter-decade twice is half a decade up to the three digits that are kept.
    rates = [rate(best, sign * quarter / 2) for quarter in range(1, 4 * WIDEST) for sign in (1, -1)]
    free = [lr for lr in rates if all(abs(math.log10(lr / other)) > 1 / 8 for other in grid)]
    return next((lr for lr in free if min(grid) < lr < max(grid)), free[0])


def _entry(records: list[Record]) -> dict[str, Any]:
    """Return the entry of `tuned.jsonl` about a search."""
    best = min(records, key=_preference)
    return {
        "lr": best.config.lr,
        "points": [_point(record) for record in records],
        "metric": best.task["metric"],
        "seed": best.config.seed,
        "steps": best.config.steps,
        "data": best.task["data"],
        "threads": best.config.threads,
        "command": best.command,
        "date": best.date,
        "machine": best.machine,
        "versions": best.versions,
    }


def _with(entry: dict[str, Any], record: Record) -> dict[str, Any]:
    """Return an entry after one more trial."""
    points = sorted([*entry["points"], _point(record)], key=lambda point: float(point["lr"]))
    best = min(points, key=lambda point: _key(entry["metric"], point if len(point) > 1 else None))
    return {**entry, "lr": best["lr"], "points": points}


def _point(record: Record) -> dict[str, Any]:
    """Return its learning rate and what it measured at its end, nothing if it diverged."""
    result = record.result or {}
    return {"lr": record.config.lr, **{k: result[k] for k in ("val_loss", "val_accuracy") if k in result}}


def _preference(record: Record) -> tuple[float, float]:
    """Return a key that is smaller for the better run: by its metric, then by its loss; diverged is last."""
    finished = record.status == "finished"
    return _key(ALL[record.config.task].metric, record.result if finished else None)


def _key(metric: str, result: dict[str, Any] | None) -> tuple[float, float]:
    """Return the same of a run's result, None if it did not finish."""
    if result is None:
        return (float("inf"), float("inf"))
    loss = result["val_loss"]
    return (loss if metric == "val_loss" else -result["val_accuracy"], loss)
