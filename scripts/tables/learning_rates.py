"""Learning rates that were tuned, and those that were calculated: docs/learning-rate.md."""

from __future__ import annotations

from scripts.tables.markdown import read, table
from sgd_sai.lab import tuned


def from_sgd() -> str:
    """The tuned rates of SGD-SaI over those of SGD with momentum."""
    entries = tuned.read(tuned.OWN)
    return table([*entries], [f"{row['sgd-sai']['lr'] / row['sgd']['lr']:.3g}" for row in entries.values()])


def transferred() -> str:
    """Return the record of `sgd-sai lr-find TASKS --tuned --json`."""
    rows = [
        [
            *("task", "AdamW, tuned", "transferred", "SGD-SaI, tuned", "tuned / transferred"),
            *("result at tuned", "at the point nearest to transferred", "metric"),
        ]
    ]
    for task in read("lr-transfer")["tasks"]:
        numbers = ("adamw", "transferred", "sgd_sai", "ratio", "tuned_metric", "nearest_metric")
        shown = [f"{task[key]:.3g}" for key in numbers]
        rows.append([task["task"], *shown, task["metric"].replace("val_", "")])
    return table(*rows)
