"""`sgd-sai compare`: train real models with several optimizers under the same conditions, and report.

For one task and one seed, every optimizer starts from the same weights and sees the same batches in the same
order on the same schedule; the learning rates were tuned by `sgd-sai tune` on another seed.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from sgd_sai.cli import CommandError
from sgd_sai.lab import arguments, tune, tuned
from sgd_sai.lab.faults import faults_told, then_reported
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import RunConfig
from sgd_sai.lab.report.command import write as write_report
from sgd_sai.lab.runs import processes, runner
from sgd_sai.lab.runs.run_pool import run_pool
from sgd_sai.lab.runs.workers import PlannedRun
from sgd_sai.lab.tasks import ALL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sgd-sai compare`."""
    arguments.add_shared(parser)
    parser.add_argument(
        "--seeds", default="0", metavar="N,N", help="one run of each with each seed (default: 0)"
    )
    parser.add_argument("--jobs", default="1", metavar="N", help="runs side by side (default: 1)")
    parser.add_argument("--lr", metavar="X", help="peak learning rate, where one optimizer is given")
    parser.add_argument(
        "--tuned", metavar="FILE", type=Path, default=tuned.OWN, help="learning rates from `sgd-sai tune`"
    )
    parser.add_argument(
        "--fsdp",
        action="store_true",
        help="under torchrun, ranks share parameters and state too (default: the batches alone, DDP)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the runs that are not finished, and write the report, also after Ctrl-C.

    Returns:
        0; 1 if the process of a run was killed.
    """
    jobs = arguments.integer("--jobs", args.jobs, least=1, most=arguments.MOST_AT_ONCE)
    _check_ranks(args, jobs)
    with processes.group():
        planned, out = processes.decided(partial(_planned, args, jobs))
        with processes.first_alone():  # it may train a model that the others find
            arguments.check_data({each.config.task for each in planned}, args.data)
        processes.decided(partial(arguments.make_folder, out, args.resume))
        steps = sum(run.config.steps for run in planned)
        with faults_told("--out", out), then_reported(partial(_report, out)), run_pool(steps) as runs:
            died = runs.run_all(planned, jobs)
    return 1 if died else 0


def _report(out: Path) -> None:
    if processes.first() and any(out.glob("*/run.json")):
        write_report([out], out / "report.html")


def _check_ranks(args: argparse.Namespace, jobs: int) -> None:
    """Raise, before the ranks meet, for what they cannot do together."""
    if processes.started() > 1 and jobs > 1:
        raise CommandError(
            f"--jobs: given {jobs} with WORLD_SIZE {processes.started()}; allowed: 1, as ranks share each run"
        )
    if not args.fsdp:
        return
    if processes.started() == 1:
        raise CommandError(
            "--fsdp: given without ranks to share parameters; allowed: under torchrun, as in "
            "torchrun --nproc-per-node 2 --no-python sgd-sai compare --fsdp"
        )
    whole = [name for name in arguments.optimizers(args.optimizer) if not OPTIMIZERS[name].sharded]
    if whole:
        raise CommandError(
            f"--fsdp: given for {', '.join(whole)}, which takes whole parameters; allowed: DDP"
        )


def _planned(args: argparse.Namespace, jobs: int) -> tuple[list[PlannedRun], Path]:
    """Return the runs and their folder; every input is checked before anything is written."""
    tasks = arguments.tasks(args.task, args.scale, args.data)
    optimizers = arguments.optimizers(args.optimizer)
    seeds = arguments.integers("--seeds", args.seeds)
    if tune.SEED in seeds:
        raise CommandError(
            f"--seeds: given {args.seeds!r}, with {tune.SEED}, by which `sgd-sai tune` chose the learning "
            "rates; allowed: other integers ≥ 0"
        )
    steps = None if args.steps is None else arguments.integer("--steps", args.steps, least=1)
    threads = arguments.threads(args.threads, jobs)
    lr = None if args.lr is None else arguments.learning_rate("--lr", args.lr)
    if lr is not None and len(optimizers) > 1:
        raise CommandError(f"--lr: given for {len(optimizers)} optimizers; name one with --optimizer")
    out = arguments.folder(args.out, args.resume, arguments.new_folder("compare"))
    data = None if args.data is None else str(args.data)
    planned: list[PlannedRun] = []
    try:
        entries = tuned.read(args.tuned)
        for task in tasks:
            for seed in seeds:
                for optimizer in optimizers:
                    rate, tuning = (lr, None) if lr is not None else _tuned(entries, task, optimizer)
                    config = RunConfig(
                        task, optimizer, seed, steps or ALL[task].steps, rate, data, threads,
                        ranks=processes.count(), fsdp=args.fsdp,
                    )  # fmt: skip
                    planned.append(PlannedRun(config, out / f"{task}-{optimizer}-{seed}", tuning))
        for each in planned:
            runner.held(each.config, each.folder)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return planned, out


def _typed(task: str) -> str:
    """Return a task's name as the command line takes it."""
    name, _, scale = task.partition("-")
    return f"{name} --scale {scale}" if scale else name


def _tuned(entries: dict[str, dict[str, Any]], task: str, optimizer: str) -> tuple[float, dict[str, Any]]:
    optimizer = OPTIMIZERS[optimizer].tuned_as or optimizer
    try:
        entry = entries[task][optimizer]
    except KeyError:
        raise CommandError(
            f"no learning rate is tuned for {optimizer} on {task}: give --lr, or run "
            f"`sgd-sai tune --task {_typed(task)} --optimizer {optimizer}` and give its --tuned file"
        ) from None
    return float(entry["lr"]), {key: entry[key] for key in ("lr", "grid", "points", "seed", "steps")}
