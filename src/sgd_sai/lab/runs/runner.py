"""One run: a model, an optimizer, a seed. A run that is killed at any moment resumes bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sgd_sai.cli import ctrl_c
from sgd_sai.files import locked
from sgd_sai.lab import optimizers, provenance
from sgd_sai.lab.records import RUN, Record, RunConfig
from sgd_sai.lab.runs import processes
from sgd_sai.lab.runs.training import Training, Watcher
from sgd_sai.lab.tasks import ALL, Problem


@lru_cache
def load(task: str, data: str | None) -> Problem:
    """Load the problem of a task, and keep it for the next run."""
    return ALL[task].load(None if data is None else Path(data))


def check_resumable(config: RunConfig, folder: Path) -> None:
    """Raise ValueError, one line, if `folder` holds a run of another configuration, or on other data."""
    if not (folder / RUN).exists():
        return
    record = Record.read(folder)
    held = {**asdict(record.config), "data": record.task["data"]}
    asked = {**asdict(config), "data": load(config.task, config.data).data}
    differences = [f"{key} {held[key]}, not {asked[key]}" for key in asked if held[key] != asked[key]]
    if differences:
        raise ValueError(f"--resume: {folder} holds a run with {', '.join(differences)}")


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
        KeyboardInterrupt: the record says "interrupted" then, and resuming goes on.
    """
    with processes.own(folder) as kept:
        kept.mkdir(parents=True, exist_ok=True)
        with locked(kept / ".lock"):  # a process whose parent was killed may still be in its last step
            return _train(config, kept, tuning, watch)


def _train(config: RunConfig, folder: Path, tuning: dict[str, Any] | None, watch: Watcher) -> Record:
    begun = provenance.now()
    held = processes.told(Record.read(folder) if (folder / RUN).exists() else None)
    if held is not None:
        if held.status in ("finished", "diverged"):
            return held
        begun = held.date
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
    record.write(folder)
    run = Training(config, folder, problem, model, called, optimizer, task)
    try:
        with ctrl_c.held() as heed:
            record.result, record.status = run.to_the_end(watch, heed)
    except BaseException:
        record.status = "interrupted"
        raise
    finally:
        run.close()
        record.write(folder)
    heed()  # it may have come in the last step
    return record
