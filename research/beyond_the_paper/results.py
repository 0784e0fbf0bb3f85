"""The records of the experiments, as docs/beyond.md shows them.

An experiment writes to `RUNS` unless `--out` names another file, which may be a record, and goes on there.

Each file is a `table` with a line a run, or a line for each kind of block. A shared value says of all runs of
one command what they have in common, and where, when and with what they were made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from sgd_sai.lab import table
from sgd_sai.lab.summary.statistics import interval
from sgd_sai.lab.tasks import ALL

RECORDS = Path(__file__).parent / "records"
#: Where an experiment writes if it is not told where.
RUNS = Path("runs/beyond")
#: A line a trial: {"search": {"task", "method", "steps", "seed", …}, "point", "seconds", "val_loss", …}.
SEARCHES = RECORDS / "searches.jsonl"
#: A line a run: {"proof": {"name", "task", "steps", "width", …}, "method", "seed", "for": "lr" or "proof",
#: "point", "val_loss", …}.
PROOFS = RECORDS / "proofs.jsonl"
#: A line for each kind of block: {"run": {"task", "seed", …}, "kind", …}, see gradients.py.
GRADIENTS = RECORDS / "gradients.jsonl"
TASKS = ("gpt", "lora", "diffusion", "cnn", "vit")
#: Methods from nothing to AdamW: name → what the page calls it.
LABELS = {
    "sgd": "SGD with momentum",
    "sgd-sai": "SGD-SaI: g-SNR",
    "rms": "rms(g)^(−1/2)",
    "rms-rows": "rms(g)^(−1/2), embedding by rows",
    "settled": "rms(g)^(−3/4) · d^(−1/8)",
    "powers": "rms(g)^(−p) · d^s, searched",
    "constants": "one constant a kind, searched",
    "hindsight": "1 / rms(g) of AdamW's own run",
    "elements": "the same, for each element",
    "adaptive": "1 / rms(g), followed over time",
    "adaptive-rows": "followed over time, embedding by rows",
    "adamw": "AdamW",
}
#: Name of proofs → how the learning rates in them were chosen.
CLIFF = {"diffusion": "chosen on one seed", "diffusion-judged": "chosen on three seeds"}
#: Name of proofs → what is larger in them.
LARGER = {"gpt": "128 wide, 300 steps", "gpt-w256": "256 wide, 300 steps", "gpt-600": "128 wide, 600 steps"}
#: Name of proofs → on which data.
OTHER_DATA = {
    "gpt-tinyshakespeare": "gpt on Shakespeare",
    "lora-e2e": "lora on E2E NLG",
}
ALSO_OTHER_DATA = ("sgd", "sgd-sai", "rms", "settled", "adamw")
ALSO_LARGER = ("sgd", "rms", "settled", "constants", "adamw")


def trials(task: str, method: str, path: Path = SEARCHES) -> list[table.Row]:
    """Return the trials of a search in their order, none if it was not made."""
    rows = table.read(path) if path.exists() else []
    return [row for row in rows if row["search"]["task"] == task and row["search"]["method"] == method]


def loss_of(run: dict[str, Any]) -> float:
    """Return the held-out loss of a run, ∞ if it diverged."""
    return float(run.get("val_loss", math.inf))


def best(of: Sequence[table.Row]) -> table.Row:
    """Return the trial with the least held-out loss."""
    return min(of, key=loss_of)


def searched(task: str) -> dict[str, table.Row]:
    """Return method → its best trial on a task, with how many "trials" there were."""
    made: dict[str, list[table.Row]] = {}
    for row in table.read(SEARCHES) if SEARCHES.exists() else []:
        if row["search"]["task"] == task:
            made.setdefault(row["search"]["method"], []).append(row)
    found = {method: made[method] for method in LABELS if method in made}
    return {method: {**best(of), "trials": len(of)} for method, of in found.items()}


def proofs(name: str, path: Path = PROOFS) -> list[table.Row]:
    """Return the runs of a name of proofs, those included that chose learning rates."""
    rows = table.read(path) if path.exists() else []
    return [row for row in rows if row["proof"]["name"] == name]


@cache  # tables ask for it cell by cell, after the experiments
def proven(name: str) -> dict[str, dict[int, float]]:
    """Return method → seed → the result by which the task is judged; methods of which every seed is there.

    A held-out loss, ∞ if the run diverged, or an accuracy, then 0.
    """
    accuracy = by_accuracy(name)
    entries: dict[str, dict[int, float]] = {}
    for run in proofs(name):
        if run["for"] == "proof":
            value = float(run.get("val_accuracy", 0.0)) if accuracy else loss_of(run)
            entries.setdefault(run["method"], {})[run["seed"]] = value
    if not entries:
        return {}
    seeds = entries["adamw"].keys()
    return {method: entries[method] for method in LABELS if entries.get(method, {}).keys() == seeds}


def by_accuracy(name: str) -> bool:
    """Return whether the task of a name of proofs is judged by its accuracy."""
    return bool(ALL[name.partition("-")[0]].metric == "val_accuracy")


def behind(name: str, method: str) -> tuple[float, tuple[float, float] | None]:
    """By what fraction of AdamW's result a method is worse, pair by pair of seeds: mean, 95 % interval."""
    runs = proven(name)
    sign = -1.0 if by_accuracy(name) else 1.0
    fractions = [
        sign * (value - runs["adamw"][seed]) / runs["adamw"][seed] for seed, value in runs[method].items()
    ]
    return mean(fractions), interval(fractions) if all(map(math.isfinite, fractions)) else None


def measured(task: str, path: Path = GRADIENTS) -> list[table.Row]:
    """Return the rows about a task."""
    rows = table.read(path) if path.exists() else []
    return [row for row in rows if row["run"]["task"] == task]


def kinds(task: str) -> list[dict[str, Any]]:
    """Return what was measured of each kind of block of a task, and the constant c that the search found.

    The constants are in units of their geometric mean; "rms(g)" is that of the first step.
    """
    point, rows = searched(task)["constants"]["point"], measured(task)
    constants = [point[f"c of {row['kind']}"] for row in rows]
    middle = math.exp(mean(math.log(c) for c in constants))
    return [
        {
            **row,
            "d": (min(row["blocks"].values()), max(row["blocks"].values())),
            "mean of d": mean(row["blocks"].values()),
            "rms(g)": row["rms(g)"]["adamw"]["1"],
            "rms(g) by step": {
                method: {int(step): value for step, value in of.items()}
                for method, of in row["rms(g)"].items()
            },
            "along": geometric_mean(row["along"]),
            "c": c / middle,
        }
        for row, c in zip(rows, constants, strict=True)
    ]


def geometric_mean(values: Iterable[float | None]) -> float:
    """Return the geometric mean of the values that are not 0 or None; 0 if there is none."""
    logs = [math.log(value) for value in values if value]
    return math.exp(mean(logs)) if logs else 0.0
