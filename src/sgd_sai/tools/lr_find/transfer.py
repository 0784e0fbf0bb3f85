"""AdamW's tuned learning rates of the lab's tasks as SGD-SaI's, beside those that were tuned for it."""

from __future__ import annotations

import math
from typing import Any

from sgd_sai.cli import CommandError, console
from sgd_sai.diagnostics import transfer_lr
from sgd_sai.lab import arguments, provenance, tuned
from sgd_sai.lab.tasks import TASKS
from sgd_sai.tools import output
from sgd_sai.tools.workload import load_workload


def run(asked: str | None, *, as_json: bool) -> int:
    """Transfer AdamW's tuned lr of each task, and print it beside SGD-SaI's tuned one; 0.

    `asked`: names of tasks with commas; None: all tasks.
    """
    entries = tuned.read(tuned.OWN)
    rows: list[dict[str, Any]] = []
    for task in arguments.names("WORKLOAD", asked or "all", TASKS):
        pair = entries.get(task, {})
        if {"adamw", "sgd-sai"} <= set(pair):
            adamw, own = pair["adamw"], pair["sgd-sai"]
            workload = load_workload(task, seed=adamw["seed"])
            workload.backward(0)
            transferred = transfer_lr(workload.model, adamw["lr"]).lr
            points = {point["lr"]: point.get(own["metric"]) for point in own["points"]}
            nearest = min(points, key=lambda lr: abs(math.log(lr / transferred)))
            rows.append(
                {
                    "task": task,
                    "adamw": adamw["lr"],
                    "transferred": transferred,
                    "sgd_sai": own["lr"],
                    "ratio": own["lr"] / transferred,
                    "metric": own["metric"],
                    "tuned_metric": points[own["lr"]],
                    "nearest": nearest,
                    "nearest_metric": points[nearest],
                    "grid_ratio": own["grid"][1] / own["grid"][0],
                }
            )
    if not rows:
        raise CommandError("--tuned: none of these tasks has tuned learning rates of both adamw and sgd-sai")
    record = {"tasks": rows, **provenance.record()}
    if as_json:
        output.print_json(record)
        return 0
    numbers = {
        "AdamW, tuned": "adamw",
        "transferred": "transferred",
        "SGD-SaI, tuned": "sgd_sai",
        "tuned / transferred": "ratio",
        "result at tuned": "tuned_metric",
        "at the point nearest to transferred": "nearest_metric",
    }
    columns = ("task", *numbers, "metric")
    cells = [
        [row["task"], *(_shown(row[key]) for key in numbers.values()), row["metric"].replace("_", " ")]
        for row in rows
    ]
    console.print_table("AdamW's tuned lr as SGD-SaI's", columns, cells, words=("task", "metric"))
    off = max(abs(math.log(row["ratio"], row["grid_ratio"])) for row in rows)
    console.print_sentence(f"At most {off:.1f} steps of the tuning grid apart.")
    return 0


def _shown(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.3g}"
