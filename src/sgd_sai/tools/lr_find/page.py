"""The page of a range test, from its record alone."""

from __future__ import annotations

from typing import Any

from sgd_sai import html
from sgd_sai.html import Axis, Chart, Row, Section
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.tools import output


def build(record: dict[str, Any]) -> str:
    """Return the page about a record."""
    entry = OPTIMIZERS[record["optimizer"]]
    lrs, losses = record["lrs"], record["losses"]
    top = 1.15 * max(record["smoothed"][0], *losses[: max(1, len(losses) // 4)])
    bottom = min(losses) - 0.08 * (top - min(losses))
    marks = [
        {
            "x": [lr, lr],
            "y": [bottom, top],
            "name": f"{name}: {lr:.3g}",
            "dash": dash,
        }
        for name, lr, dash in (("steepest", record["steepest"], "dot"), ("lowest", record["lowest"], "dash"))
        if lr is not None
    ]
    lines = [
        *marks,
        {"x": lrs, "y": losses, "name": "loss", "colours": entry.colour, "opacity": 0.35, "silent": True},
        {"x": lrs, "y": record["smoothed"], "name": "smoothed", "colours": entry.colour, "width": 2.5},
    ]
    chart = Chart(
        "range",
        "Loss while lr rises",
        Axis("lr", log=True),
        Axis(range=(bottom, top)),
        lines,
        "faint: of each step; dotted: steepest; dashed: lowest",
    )
    section = Section(
        entry.label,
        f"{len(lrs)} steps without decay, each with an lr larger than the last by the same factor.",
        [Row([chart], "single")],
    )
    return html.build(
        f"Learning rate for {record['workload']}",
        record["sentences"],
        [section],
        output.provenance_lines(record),
    )
