"""The tuned learning rates: `tuned.jsonl`, which `sgd-sai tune` writes and `sgd-sai compare` reads.

A `table`, a row for each task and optimizer: the learning rate, and what was tried where and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgd_sai.lab import table

#: Those that come with the package, of every task and optimizer.
OWN = Path(__file__).with_name("tuned.jsonl")
_SHARED = ("data", "command", "machine", "versions")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """{task: {optimizer: entry}}, empty if there is no file; ValueError, one line, if it is no such file."""
    if not path.exists():
        return {}
    entries: dict[str, dict[str, Any]] = {}
    try:
        for row in table.read(path):
            points = table.rows(row["points"])
            entry = {**row, "grid": [point["lr"] for point in points], "points": points}
            entries.setdefault(entry.pop("task"), {})[entry.pop("optimizer")] = entry
            if not entry["lr"] > 0:
                raise ValueError("a learning rate is not positive")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
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
