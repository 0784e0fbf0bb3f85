"""Draws the figures of README and docs from records: `python docs/figures.py [FOLDER]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sgd_sai.lab import figure, sweep_page
from sgd_sai.lab.records import read_runs
from sgd_sai.lab.summary import by_task

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "docs" / "records"
SPEED = ROOT / "benchmarks" / "results" / "speed"
#: What the picture of speed shows, from the fastest of others to the slowest, and ours.
CONTENDERS = ("sgd-sai", "sgd-fused", "adamw-fused", "release", "pytorch-optimizer")
OURS, OTHERS, LINE = "#c2410c", "#b9c0c7", "#57606a"


def speed() -> bytes:
    """A step of each optimizer, in units of the time that its bytes must take, for two models."""
    records = [json.loads((SPEED / f"{model}-cpu-2.json").read_text()) for model in ("gpt2", "resnet18")]
    drawing = Figure(figsize=(9.0, 2.1), dpi=160, layout="constrained")
    for axes, record in zip(drawing.subplots(1, 2), records, strict=True):
        _bars(axes, record)
    return figure.png(drawing)


def _bars(axes: Any, record: dict[str, Any]) -> None:
    rows = {name: record["rows"][name] for name in CONTENDERS if name in record["rows"]}
    names = sorted(rows, key=lambda name: -rows[name]["times_floor"])
    values = [rows[name]["times_floor"] for name in names]
    colours = [OURS if name == "sgd-sai" else OTHERS for name in names]
    bars = axes.barh([rows[name]["label"] for name in names], values, color=colours, height=0.7)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axes.axvline(1.0, color=LINE, linewidth=1, linestyle=":")
    axes.set_xlim(0, 1.15 * max(values))
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(
        f"{record['model']}, {record['parameters'] / 1e6:.3g} M parameters", fontsize=9, loc="left"
    )
    axes.set_xlabel("one step, × the time of SGD-SaI's bytes", fontsize=8)


def draw() -> dict[str, bytes]:
    """The figures by their file names."""
    study = figure.draw(by_task(read_runs([RECORDS / "study"])))
    demo = figure.draw(by_task(read_runs([RECORDS / "demo"])))
    return {
        "demo.png": demo["steps"],
        "speed.png": speed(),
        "sweep-vit.png": sweep_page.figure(read_runs([RECORDS / "sweep"])),
        **{f"study-{name}.png": study[name] for name in ("final", "steps", "gsnr")},
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "figures"
    for name, content in draw().items():
        (folder / name).write_bytes(content)
