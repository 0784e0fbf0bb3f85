"""Draws the figures of README and docs from records: `python -m scripts.figures [FOLDER]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from research.beyond_the_paper import results
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.report import figure
from sgd_sai.lab.summary import by_task
from sgd_sai.lab.sweep import page as sweep_page

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results"
#: Rows of the picture of speed: ours, then the others from the fastest to the slowest.
CONTENDERS = ("sgd-sai", "sgd-fused", "adamw-fused", "release", "pytorch-optimizer")
TASK_COLOURS = ("#c2410c", "#1d4ed8", "#4d7c0f", "#7e22ce", "#57606a")
RIGHT = 0.2  # what is further behind AdamW is drawn here
OURS, OTHERS, LINE = "#c2410c", "#b9c0c7", "#57606a"


def speed() -> bytes:
    """A step of each optimizer, in units of the time that its bytes must take, for two models."""
    files = [RECORDS / "speed" / f"{model}-cpu-2.json" for model in ("gpt2", "resnet18")]
    records = [json.loads(file.read_text("utf-8")) for file in files]
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


def gap() -> bytes:
    """By how much each method is behind AdamW, a dot and an interval a task, and the bar of one per cent."""
    drawing = Figure(figsize=(8.0, 4.2), dpi=160, layout="constrained")
    axes = drawing.subplots()
    proofs = {task: results.proven(task) for task in results.TASKS}
    methods = [
        name for name in results.LABELS if name != "adamw" and any(name in of for of in proofs.values())
    ]
    for index, (task, colour) in enumerate(zip(proofs, TASK_COLOURS, strict=True)):
        axes.plot([], [], "o", color=colour, label=task)
        for place, name in enumerate(methods):
            if name in proofs[task]:
                _dot(axes, place + (index - 2) * 0.14, colour, *results.behind(task, name))
    axes.axvline(0.0, color=LINE, linewidth=1)
    axes.axvline(0.01, color=LINE, linewidth=1, linestyle=":")
    axes.set_xlim(-0.04, 1.02 * RIGHT)
    axes.set_yticks(range(len(methods)), [results.LABELS[name] for name in methods])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.tick_params(axis="both", length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color="#d9dee3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("behind AdamW, new seeds, 95 % interval; dotted: 1 %; arrows: further out", fontsize=8)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    return figure.png(drawing)


def _dot(axes: Any, place: float, colour: str, behind: float, interval: tuple[float, float] | None) -> None:
    further = behind > RIGHT
    axes.plot(min(behind, RIGHT), place, ">" if further else "o", color=colour, markersize=4.5)
    if interval and not further:
        axes.plot(interval, (place, place), color=colour, linewidth=1.4)


def gradients() -> bytes:
    """How the gradients of each kind of block of the lab's gpt grow and shrink in training."""
    drawing = Figure(figsize=(9.0, 3.2), dpi=160, layout="constrained")
    places = drawing.subplots(1, 2, sharey=True)
    colours = colormaps["tab10"]
    for axes, (method, title) in zip(places, (("adamw", "AdamW"), ("sgd", "SGD")), strict=True):
        for index, row in enumerate(results.kinds("gpt")):
            steps = row["rms(g) by step"][method]
            axes.loglog(steps.keys(), steps.values(), color=colours(index), linewidth=1.6, label=row["kind"])
        axes.set_title(f"{title} trains", fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    places[0].set_ylabel("rms of the gradient", fontsize=8)
    handles, labels = places[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure.png(drawing)


def draw() -> dict[str, bytes]:
    """The figures by their file names."""
    study = figure.draw(by_task(read_runs([RECORDS / "study"])))
    demo = figure.draw(by_task(read_runs([RECORDS / "demo"])))
    return {
        "demo.png": demo["steps"],
        "speed.png": speed(),
        "beyond-gap.png": gap(),
        "beyond-gradients.png": gradients(),
        "sweep-vit.png": sweep_page.figure(read_runs([RECORDS / "sweep"])),
        **{f"study-{name}.png": study[name] for name in ("final", "steps", "gsnr")},
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "figures"
    for name, content in draw().items():
        (folder / name).write_bytes(content)
