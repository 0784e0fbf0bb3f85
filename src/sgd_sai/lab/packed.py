"""A study in two files, where `sgd-sai compare` leaves a folder for each run.

`runs.jsonl` has a line a run: what `run.json` holds. `curves.jsonl` has a line a run, in the same order: what
it logged, a list for each quantity, the g-SNR of its blocks, and what the model made. Both are a `table`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from sgd_sai.lab import table
from sgd_sai.lab.faults import damage_named
from sgd_sai.lab.records import BlockGSNR, Record, Run
from sgd_sai.lab.schema import check

RUNS, CURVES = "runs.jsonl", "curves.jsonl"
_SHARED = ("task", "tuning", "machine", "versions", "command")
_WHAT = "the records of runs"


class _Named(TypedDict):
    run: str


class _Curves(_Named, total=False):
    """A row of `curves.jsonl`; what stands in its columns is checked as that of a folder is."""

    training: dict[str, list[Any]]
    evaluations: dict[str, list[Any]]
    blocks: dict[str, Any]
    gsnr: dict[str, Any]
    pictures: str
    text: str


def write(runs: Sequence[Run], folder: Path) -> None:
    """Write the runs into `folder`, which is created if it is missing, in place of a study that it holds."""
    folder.mkdir(exist_ok=True)
    curves = [_curves(run) for run in runs]
    if any(len(row) > 1 for row in curves):
        table.write(folder / CURVES, curves, ("blocks",))
    else:
        (folder / CURVES).unlink(missing_ok=True)
    table.write(folder / RUNS, [asdict(run.record) for run in runs], _SHARED)


def read(folder: Path) -> list[Run]:
    """Read the runs of `folder`; `DamagedRun` if its files are not what `write` wrote."""
    with damage_named(folder / RUNS, _WHAT):
        records = [Record.of(row) for row in table.read(folder / RUNS)]
        if not records:
            raise ValueError("it is empty")
    if not (folder / CURVES).exists():
        return [Run(record, [], []) for record in records]
    with damage_named(folder / CURVES, _WHAT):
        curves = [check(_Curves, row) for row in table.read(folder / CURVES)]
        if [row["run"] for row in curves] != [_name(record) for record in records]:
            raise ValueError(f"its runs are not those of {RUNS} beside it")
        return [_run(record, row) for record, row in zip(records, curves, strict=True)]


def _name(record: Record) -> str:
    config = record.config
    return f"{config.task}-{config.optimizer}-{config.seed}"


def _curves(run: Run) -> table.Row:
    """Return the run's row of `curves.jsonl`, without what it has not."""
    row = {
        "run": _name(run.record),
        "training": table.columns(run.training) or None,
        "evaluations": table.columns(run.evaluations) or None,
        "blocks": run.gsnr and run.gsnr.d,
        "gsnr": run.gsnr and run.gsnr.steps,
        "pictures": run.pictures and b64encode(run.pictures).decode(),
        "text": run.text,
    }
    return {name: value for name, value in row.items() if value is not None}


def _run(record: Record, row: table.Row) -> Run:
    gsnr, pictures = row.get("gsnr"), row.get("pictures")
    return Run.of(
        record,
        table.rows(row.get("training", {})),
        table.rows(row.get("evaluations", {})),
        None if gsnr is None else BlockGSNR.of({"d": row.get("blocks"), "steps": gsnr}),
        None if pictures is None else b64decode(pictures, validate=True),
        row.get("text"),
    )
