"""The charts of a task: curves of its runs, the tuning of its learning rates, g-SNR of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from sgd_sai.html import Axis, Chart
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import BlockGSNR
from sgd_sai.lab.summary import Row, TaskSummary

#: The reader chooses one of them as x of the curves.
AGAINST = {"steps": "steps", "seconds": "seconds of training"}

_STRONG = {"width": 2.25, "hover": "(%{x}, %{y})<extra>%{fullData.name}</extra>"}
_FAINT = {"width": 1, "opacity": 0.3, "silent": True}


def of_results(task: TaskSummary) -> list[Chart]:
    """Return the curves of loss and accuracy, and the results of tuning, as far as there are any."""
    evaluations = [line for row in task.rows for run in row.runs for line in run.evaluations]
    charts = [
        Chart(
            f"{task.name}-val_loss",
            f"Validation loss, {task.about['unit']}",
            Axis(AGAINST),
            Axis(range=_loss_range(evaluations), hover=".4f"),
            _curves(task, "val_loss"),
            "faint: training loss",
        )
    ]
    if accuracies := [line["val_accuracy"] for line in evaluations if "val_accuracy" in line]:
        charts.append(
            Chart(
                f"{task.name}-val_accuracy",
                "Validation accuracy",
                Axis(AGAINST),
                Axis(range=[0, min(1.03, 1.1 * max(accuracies))], percent=True, hover=".1%"),
                _curves(task, "val_accuracy"),
                "on the same held-out data for all",
            )
        )
    if tuning := _tuning(task):
        seeds = ", ".join(sorted({str(row.tuning["seed"]) for row in task.rows if row.tuning}))
        charts.append(
            Chart(
                f"{task.name}-tuning",
                f"Final {'accuracy' if task.by_accuracy else 'loss'} by learning rate",
                Axis("learning rate", log=True, dtick=1, hover=".3g", grid=True),
                Axis(percent=task.by_accuracy, hover=".1%" if task.by_accuracy else ".4f"),
                tuning,
                f"from tuning, seed {seeds}",
            )
        )
    return charts


def of_gsnr(task: TaskSummary) -> list[Chart]:
    """Return a chart for each run whose g-SNR is shown, all blocks as one line with gaps."""
    charts = []
    for row, gsnr in task.gsnr:
        low, high = gsnr.decades
        line = {
            "several": {"names": list(gsnr.d), "values": list(gsnr.steps.values())},
            "x": list(gsnr.steps),
            "colours": OPTIMIZERS[row.optimizer].colour,
            "opacity": 0.6,
            "hover": "%{text}<br>step %{x}: %{y:.4g}<extra></extra>",
        }
        charts.append(
            Chart(
                f"{task.name}-gsnr-{row.optimizer}",
                f"g-SNR of blocks, {row.label}",
                Axis("steps"),
                # A little more than the powers of ten, so that these are shown.
                Axis(log=True, dtick=1, range=(low - 0.05, high + 0.05)),
                [line],
                f"a line each, seed {row.runs[0].record.config.seed}{_moved(gsnr)}",
            )
        )
    return charts


def _loss_range(lines: Sequence[dict[str, float]]) -> list[float] | None:
    """From the lowest loss to the highest, of which at most half is above the untrained model's."""
    if not lines:
        return None
    losses = [line["val_loss"] for line in lines]
    low, high = min(losses), max(losses)
    untrained = max((line["val_loss"] for line in lines if line["step"] == 0), default=high)
    high = min(high, 2 * untrained - low)
    margin = 0.05 * (high - low)
    return [low - margin, high + margin]


def _curves(task: TaskSummary, metric: str) -> list[dict[str, Any]]:
    lines = []
    for row in task.rows:
        for run in row.runs:
            if metric == "val_loss":
                lines.append(_line(row, run.training, "train_loss") | _FAINT)
            lines.append(_line(row, run.evaluations, metric) | _STRONG)
    return lines


def _line(row: Row, points: Iterable[dict[str, float]], metric: str) -> dict[str, Any]:
    points = list(points)
    return {
        "name": row.label,
        "colours": OPTIMIZERS[row.optimizer].colour,
        "x": {
            "steps": [point["step"] for point in points],
            "seconds": [point["seconds"] for point in points],
        },
        "y": [point[metric] for point in points],
    }


def _tuning(task: TaskSummary) -> list[dict[str, Any]]:
    lines = []
    for row in task.rows:
        points = [point for point in (row.tuning or {}).get("points", []) if task.about["metric"] in point]
        if points:
            line = {
                "name": row.label,
                "colours": OPTIMIZERS[row.optimizer].colour,
                "x": [point["lr"] for point in points],
                "y": [point[task.about["metric"]] for point in points],
                "mode": "lines+markers",
                "size": 6,
            }
            lines.append(line | _STRONG)
    return lines


def _moved(gsnr: BlockGSNR) -> str:
    spans = gsnr.spans
    return f"; the median block's largest is {median(spans):.2f} × its smallest" if spans else ""
