"""One run: a model, an optimizer, a seed. A run that is killed at any moment resumes bit for bit."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sgd_sai.cli import ctrl_c
from sgd_sai.files import locked
from sgd_sai.lab import optimizers, provenance
from sgd_sai.lab.faults import DamagedRun, UnusableRun, damage_named
from sgd_sai.lab.records import CHECKPOINT, GSNR, METRICS, RUN, Record, Run, RunConfig, differences
from sgd_sai.lab.runs import processes
from sgd_sai.lab.runs.training import Training, Watcher
from sgd_sai.lab.tasks import ALL, Problem

#: What a run says that has nothing left to do.
ENDED = ("finished", "diverged")


@lru_cache
def load(task: str, data: str | None) -> Problem:
    """Load the problem of a task, and keep it for the next run."""
    return ALL[task].load(None if data is None else Path(data))


def held(config: RunConfig, folder: Path) -> Record | None:
    """Return the record of `folder`, None if there is none.

    Raises:
        UnusableRun: it is of another configuration, or on other data, or a file of it is damaged.
    """
    if not (folder / RUN).exists():
        if left := [name for name in (CHECKPOINT, METRICS, GSNR) if (folder / name).exists()]:
            raise DamagedRun(f"{folder / RUN}: is missing beside {left[0]}; remove its folder")
        return None
    record = Record.read(folder)
    asked = config.identity(load(config.task, config.data).data)
    if other := differences(record.config.identity(record.task["data"]), asked):
        raise UnusableRun(f"--resume: {folder} holds a run with {other}")
    if record.status in ENDED:
        Run.read(folder)  # of the others, training reads the rest
    return record


def train(config: RunConfig, folder: Path, tuning: dict[str, Any] | None, watch: Watcher) -> Record:
    """Run `config` in `folder`, or go on where the last checkpoint there left it.

    Everything a step depends on is a function of (seed, step) or in the checkpoint: weights, optimizer state,
    torch's generator, step. The schedule is a function of the step.

    Args:
        config: what to run.
        folder: where its files are; created if it is missing.
        tuning: where lr comes from, for the record.
        watch: told of every step.

    Raises:
        UnusableRun: the folder holds another run, or a damaged one; nothing has changed.
        KeyboardInterrupt: the record says "interrupted" then, and resuming goes on.
    """
    with ExitStack() as lock:

        def take() -> Record | None:
            _lock(folder, lock)
            return held(config, folder)

        record = processes.decided(take)
        if record is not None and record.status in ENDED:
            return record
        with processes.own(folder) as kept:
            return _train(config, kept, tuning, watch, record.date if record else provenance.now())


def _lock(folder: Path, until: ExitStack) -> None:
    """Keep other processes out of `folder`: one whose parent was killed may still be in its last step."""

    def waiting() -> None:
        print(f"sgd-sai: {folder}: another process has this run; waiting for it", file=sys.stderr, flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    with damage_named(folder / ".lock", "a file to lock"):
        until.enter_context(locked(folder / ".lock", waiting))


def _train(
    config: RunConfig, folder: Path, tuning: dict[str, Any] | None, watch: Watcher, begun: str
) -> Record:
    torch.set_num_threads(config.threads)
    task, problem = ALL[config.task], load(config.task, config.data)
    torch.manual_seed(config.seed)
    model = problem.model().to("cuda" if torch.cuda.is_available() else "cpu")
    model.train()
    called = processes.spread(model, config.fsdp)
    shrink = task.shrink if config.weight_decay is None else config.lr * config.weight_decay
    optimizer = optimizers.build(config.optimizer, model, config.lr, shrink)
    described = ("title", "about", "metric", "unit", "clip", "shrink")
    record = Record(
        config=config,
        status="running",
        task={
            **{name: getattr(task, name) for name in described},
            "shrink": shrink,
            "data": problem.data,
            "schedule": str(task.schedule),
        },
        parameters=sum(param.numel() for param in model.parameters()),
        tuning=tuning,
        machine=provenance.machine(),
        versions=provenance.versions(),
        command=provenance.command(),
        date=begun,
    )
    run = Training(config, folder, problem, model, called, optimizer, task)
    record.write(folder)  # not before: a run that cannot be gone on with stays as it is
    try:
        with run.opened(), ctrl_c.held() as heed:
            record.result, record.status = run.to_the_end(watch, heed)
    except BaseException:
        record.status = "interrupted"
        raise
    finally:
        record.write(folder)
    heed()  # it may have come in the last step
    return record
