"""The tuned learning rates: `tuned.jsonl`, which `sgd-sai tune` writes and `sgd-sai compare` reads.

A `table`, a row for each task and optimizer: the learning rate, and what was tried where and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from sgd_sai.lab import table
from sgd_sai.lab.fields import Machine, Metric, Point
from sgd_sai.lab.schema import AtLeastOne, Count, Positive, check

#: Those that come with the package, of every task and optimizer.
OWN = Path(__file__).with_name("tuned.jsonl")
_SHARED = ("data", "command", "machine", "versions")


class _Entry(TypedDict):
    """A row of the file, its points as columns."""

    task: str
    optimizer: str
    lr: Positive
    points: dict[str, list[Any]]
    metric: Metric
    seed: Count
    steps: AtLeastOne
    data: str
    threads: AtLeastOne
    command: str
    date: str
    machine: Machine
    versions: dict[str, str]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """{task: {optimizer: entry}}, empty if there is no file; ValueError, one line, if it is no such file."""
    if not path.exists():
        return {}
    entries: dict[str, dict[str, Any]] = {}
    try:
        for number, row in enumerate(table.read(path), start=1):
            entry = check(_Entry, row, f"entry {number}")
            points = check(list[Point], table.rows(entry["points"]), f"entry {number}.points")
            entry |= {"grid": [point["lr"] for point in points], "points": points}
            if entry["lr"] not in entry["grid"]:
                raise ValueError(f"entry {number}.lr is {entry['lr']}, which is none of its points")
            entries.setdefault(entry.pop("task"), {})[entry.pop("optimizer")] = entry
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a file of tuned learning rates ({error})") from None
    return entries


def on_edge(lr: float, grid: Sequence[float]) -> bool:
    """True if no smaller or no larger learning rate is in the grid."""
    return not min(grid) < lr < max(grid)


def enter(path: Path, task: str, optimizer: str, entry: dict[str, Any]) -> None:
    """Put one entry in, leaving the others."""
    entries = read(path)
    entries.setdefault(task, {})[optimizer] = entry
    rows = [
        _row(task, optimizer, entry)
        for task, of_task in sorted(entries.items())
        for optimizer, entry in sorted(of_task.items())
    ]
    table.write(path, rows, _SHARED)


def _row(task: str, optimizer: str, entry: dict[str, Any]) -> table.Row:
    rest = {name: value for name, value in entry.items() if name not in ("lr", "grid", "points")}
    points = table.columns(entry["points"])
    return {"task": task, "optimizer": optimizer, "lr": entry["lr"], **rest, "points": points}
