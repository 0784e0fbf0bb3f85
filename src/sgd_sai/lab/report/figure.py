"""The figures of the report as PNGs, drawn from the records."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sgd_sai.cli.printable import printable
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import BlockGSNR
from sgd_sai.lab.summary import Row, TaskSummary, statistics

_INK, _SOFT, _RULE = "#1f2328", "#636c76", "#d9dee3"
_ACROSS = 3  # panels in a row

#: Draws a panel.
_Panel = Callable[[Axes], None]


def draw(tasks: Sequence[TaskSummary]) -> dict[str, bytes]:
    """Return PNGs: "steps" and "seconds", the held-out metric against them; "final"; "gsnr" if recorded."""
    panels: dict[str, list[_Panel]] = {
        "steps": [partial(_curves, task=task, x="steps") for task in tasks],
        "seconds": [partial(_curves, task=task, x="seconds of training") for task in tasks],
        "final": [partial(_final, task=task) for task in tasks if task.ranking],
        "gsnr": [partial(_gsnr, task=task, row=row, gsnr=gsnr) for task in tasks for row, gsnr in task.gsnr],
    }
    return {name: _drawn(each) for name, each in panels.items() if each}


def _drawn(panels: Sequence[_Panel]) -> bytes:
    """Return the panels side by side in rows, with one legend, as the bytes of a PNG."""
    figure, places = in_rows(len(panels), (3.9, 3.2), dpi=160, below=0.3)
    for axes, panel in zip(places, panels, strict=True):
        panel(axes)
    keys = {
        label: line for axes in places for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if keys:
        columns = min(len(keys), 2 * min(len(panels), _ACROSS))
        figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return png(figure)


def in_rows(count: int, size: tuple[float, float], dpi: int, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels of a size in inches, three in a row, with room `below` them all."""
    across = min(count, _ACROSS)
    down = math.ceil(count / across)
    figure = Figure(figsize=(size[0] * across, size[1] * down + below), dpi=dpi, layout="constrained")
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in places[count:]:
        axes.remove()
    return figure, places[:count]


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG, which do not name the program that drew it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def plain(text: str) -> str:
    """Return a text as Matplotlib draws it without reading formulas between dollars in it."""
    return printable(text, "\n").replace("$", r"\$")


def _curves(axes: Axes, task: TaskSummary, x: str) -> None:
    """Draw the held-out metric of every run."""
    metric, key = task.about["metric"], x.partition(" ")[0].replace("steps", "step")
    for row in task.rows:
        for run in row.runs:
            axes.plot(
                [line[key] for line in run.evaluations],
                [line[metric] for line in run.evaluations],
                color=_colour(row),
                linewidth=1.6,
                label=row.label,
            )
    _dress(axes, task.title, _unit(task))
    axes.set_xlabel(x, color=_SOFT)
    if task.by_accuracy:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _final(axes: Axes, task: TaskSummary) -> None:
    """Draw where runs end: a dot a seed, the mean, and its interval."""
    rows = task.ranking
    for place, row in zip(reversed(range(len(rows))), rows, strict=True):
        values = row.final(task.about["metric"])
        found = statistics.interval(values)
        if found is not None:
            axes.plot(found, (place, place), color=_colour(row), linewidth=2, solid_capstyle="butt")
        axes.plot(values, [place] * len(values), "o", color=_colour(row), markersize=4, alpha=0.5)
        axes.plot(mean(values), place, "|", color=_colour(row), markersize=16, markeredgewidth=2.5)
        axes.plot([], [], color=_colour(row), linewidth=1.6, label=row.label)
    _dress(axes, task.title, _unit(task), grid="x")
    axes.set_xlabel("seeds, mean, 95 % interval", color=_SOFT)
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    if task.by_accuracy:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.locator_params(axis="x", nbins=4)


def _gsnr(axes: Axes, task: TaskSummary, row: Row, gsnr: BlockGSNR) -> None:
    """Draw G_snr of every block over time."""
    for values in zip(*gsnr.steps.values(), strict=True):
        points = [math.nan if value is None else value for value in values]
        axes.semilogy(list(gsnr.steps), points, color=_colour(row), linewidth=1, alpha=0.6)
    low, high = gsnr.decades
    axes.set_ylim(10.0**low, 10.0**high)
    _dress(axes, task.title, f"g-SNR of blocks, {row.label}, seed {row.runs[0].record.config.seed}")
    axes.set_xlabel("steps", color=_SOFT)


def _dress(axes: Axes, title: str, subtitle: str, grid: str = "y") -> None:
    axes.set_title(plain(f"{title}\n"), loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.text(0, 1.03, plain(subtitle), transform=axes.transAxes, fontsize=9, color=_SOFT)
    axes.grid(axis="x" if grid == "x" else "y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_RULE)


def _unit(task: TaskSummary) -> str:
    return "validation accuracy" if task.by_accuracy else f"validation loss, {task.about['unit']}"


def _colour(row: Row) -> str:
    return OPTIMIZERS[row.optimizer].colour[0]
