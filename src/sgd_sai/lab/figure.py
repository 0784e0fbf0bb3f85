"""The curves of the report as a PNG, drawn from the records."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.summary import TaskSummary

_INK, _SOFT, _RULE = "#1f2328", "#636c76", "#d9dee3"


def draw(tasks: Sequence[TaskSummary]) -> bytes:
    """One panel per task, its held-out metric against steps, as the bytes of a PNG."""
    figure = Figure(figsize=(3.9 * len(tasks), 3.5), dpi=200, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        _panel(axes, task)
    keys = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        keys.values(),
        keys.keys(),
        loc="outside lower center",
        ncols=min(len(keys), 2 * len(tasks)),
        frameon=False,
    )
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _panel(axes: Axes, task: TaskSummary) -> None:
    metric = task.about["metric"]
    for row in task.rows:
        for run in row.runs:
            axes.plot(
                [line["step"] for line in run.evaluations],
                [line[metric] for line in run.evaluations],
                color=OPTIMIZERS[row.optimizer].colour[0],
                linewidth=1.8,
                label=row.label,
            )
    unit = "validation accuracy" if task.by_accuracy else f"validation loss, {task.about['unit']}"
    axes.set_title(f"{task.about['title']}\n", loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.text(0, 1.03, unit, transform=axes.transAxes, fontsize=9, color=_SOFT)
    axes.set_xlabel("steps", color=_SOFT)
    if task.by_accuracy:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 1.02)
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_RULE)
