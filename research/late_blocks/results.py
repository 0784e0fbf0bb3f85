"""The records of the study, as docs/late.md shows them.

A file for each situation, a `table` with a line a run: {"study": {"situation", "steps", …, "command", …},
"for": "lr" or "proof", "way", "lr", "seed", "val_loss" or "diverged"}. A run for "lr" is judged on one half
of what is held out, one for "proof" on the other. The line for "scales" is about the scales of short runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from sgd_sai.lab import table
from sgd_sai.lab.summary.statistics import interval

RECORDS = Path(__file__).parent / "records"
#: Where a study writes if it is not told where.
RUNS = Path("runs/late-blocks")
BASE = "as it is"


def rows(situation: str, steps: int, folder: Path = RECORDS) -> list[table.Row]:
    """Return the lines about a situation in runs of that many steps."""
    path = folder / f"{situation}.jsonl"
    found = table.read(path) if path.exists() else []
    return [row for row in found if row["study"]["steps"] == steps]


def loss_of(row: Mapping[str, Any]) -> float:
    """Return the held-out loss of a run, ∞ if it diverged."""
    return float(row.get("val_loss", math.inf))


def searched(of: Iterable[table.Row], way: str) -> dict[float, float]:
    """Return learning rate → loss of a way's search."""
    return {row["lr"]: loss_of(row) for row in of if row["for"] == "lr" and row["way"] == way}


def best(search: Mapping[float, float]) -> float:
    """Return the learning rate with the least loss."""
    return min(search, key=lambda lr: (search[lr], lr))


def on_edge(search: Mapping[float, float]) -> bool:
    """Return whether no larger or no smaller learning rate than the best was tried."""
    return best(search) in (min(search), max(search))


def proven(of: Iterable[table.Row], way: str) -> dict[int, float]:
    """Return seed → loss of a way at its best learning rate."""
    return {row["seed"]: loss_of(row) for row in of if row["for"] == "proof" and row["way"] == way}


def scales(of: Iterable[table.Row]) -> table.Row | None:
    """Return the line of the scales."""
    return next((row for row in of if row["for"] == "scales"), None)


def of_mean(values: Iterable[float]) -> tuple[float, tuple[float, float] | None]:
    """Return mean and 95 % interval; no interval where a run diverged."""
    each = list(values)
    return mean(each), interval(each) if all(map(math.isfinite, each)) else None


def against(runs: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Return the paired differences of two ways, of the seeds that both have."""
    return [runs[seed] - base[seed] for seed in sorted(runs.keys() & base.keys())]
