"""The tuned learning rates: `tuned.json`, which `sgd-sai tune` writes and `sgd-sai compare` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgd_sai.lab.records import write_json

#: Those that come with the package, of every task and optimizer.
OWN = Path(__file__).with_name("tuned.json")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """{task: {optimizer: entry}}, empty if there is no file; ValueError, one line, if it is no such file."""
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text())
        if not all(float(entry["lr"]) > 0 for row in entries.values() for entry in row.values()):
            raise ValueError("a learning rate is not positive")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a file of tuned learning rates ({error})") from None
    return dict(entries)


def on_edge(lr: float, grid: Sequence[float]) -> bool:
    """True if no smaller or no larger learning rate is in the grid."""
    return not min(grid) < lr < max(grid)


def enter(path: Path, task: str, optimizer: str, entry: dict[str, Any]) -> None:
    """Put one entry in, leaving the others."""
    entries = read(path)
    entries.setdefault(task, {})[optimizer] = entry
    write_json(path, {name: dict(sorted(row.items())) for name, row in sorted(entries.items())})
