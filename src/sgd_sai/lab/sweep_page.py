"""The grids of `sgd-sai sweep` as heat maps and surfaces: a page that opens offline, and a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Run


@dataclass(frozen=True)
class Grid:
    """The results of one optimizer on one task; a run that diverged or is missing has none."""

    title: str
    metric: str
    rates: list[float]
    decays: list[float]
    found: list[list[float | None]]  # [weight decay][lr]

    @property
    def numbers(self) -> list[float]:
        """The results that there are."""
        return [value for row in self.found for value in row if value is not None]

    @property
    def summary(self) -> str:
        """The best, the mean over the grid as the paper gives it, and how many points have no result."""
        count = len(self.rates) * len(self.decays)
        if not self.numbers:
            return f"{self.title}: none of {count} points finished"
        best = (max if self.metric == "val_accuracy" else min)(self.numbers)
        mean = sum(self.numbers) / len(self.numbers)
        lacking = f", over the {len(self.numbers)} of {count} points that finished"
        return f"{self.title}: best {best:.4g}, mean {mean:.4g}{lacking if len(self.numbers) < count else ''}"


def grids(runs: Sequence[Run]) -> list[Grid]:
    """One grid for each task, optimizer and seed."""
    sorted_out: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        config = run.record.config
        sorted_out.setdefault((config.task, config.optimizer, config.seed), []).append(run)
    return [_grid(group) for group in sorted_out.values()]


def _grid(runs: Sequence[Run]) -> Grid:
    record = runs[0].record
    metric = record.task["metric"]
    results = {
        (run.record.config.lr, run.record.config.weight_decay): run.record.result[metric]
        for run in runs
        if run.record.status == "finished" and run.record.result is not None
    }
    rates = sorted({run.record.config.lr for run in runs})
    decays = sorted({run.record.config.weight_decay or 0.0 for run in runs})
    found = [[results.get((lr, decay)) for lr in rates] for decay in decays]
    label = OPTIMIZERS[record.config.optimizer].label
    title = f"{record.task['title']}, {label}, seed {record.config.seed}"
    return Grid(title, metric, rates, decays, found)


def page(runs: Sequence[Run]) -> str:
    """A heat map and a surface of every grid, side by side."""
    found = grids(runs)
    chart = make_subplots(
        rows=len(found),
        cols=2,
        specs=[[{"type": "heatmap"}, {"type": "surface"}]] * len(found),
        subplot_titles=[title for grid in found for title in (grid.summary, "")],
    )
    for row, grid in enumerate(found, 1):
        x, y = ([f"{value:g}" for value in values] for values in (grid.rates, grid.decays))
        style = {"colorscale": "Viridis", "reversescale": grid.metric != "val_accuracy", "showscale": False}
        heat = go.Heatmap(x=x, y=y, z=grid.found, texttemplate="%{z:.4g}", **style)
        chart.add_trace(heat, row=row, col=1)
        chart.add_trace(go.Surface(z=grid.found, **style), row=row, col=2)  # over the points' indices
        chart.update_xaxes(title="learning rate", type="category", row=row, col=1)
        chart.update_yaxes(title="weight decay λ", type="category", row=row, col=1)
        scene = {
            "xaxis": {"title": "learning rate", "tickvals": list(range(len(x))), "ticktext": x},
            "yaxis": {"title": "λ", "tickvals": list(range(len(y))), "ticktext": y},
            "zaxis": {"title": grid.metric},
        }
        chart.update_scenes(scene, row=row, col=2)
    chart.update_layout(height=460 * len(found), template="plotly_white", title="SGD-SaI: lr × weight decay")
    drawn = chart.to_html(full_html=False, include_plotlyjs=True)
    lines = "".join(f"<li>{escape(grid.summary)}</li>" for grid in found)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Sweep</title></head>'
        f'<body style="font-family: system-ui, sans-serif">{drawn}<ul>{lines}</ul></body></html>'
    )


def figure(runs: Sequence[Run]) -> bytes:
    """The heat maps as the bytes of a PNG."""
    found = grids(runs)
    paper = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2}  # under the numbers
    drawing = Figure(figsize=(5.5, 3.8 * len(found)), dpi=150, layout="constrained")
    for axes, grid in zip(drawing.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        numbers = [[float("nan") if value is None else value for value in row] for row in grid.found]
        colours = "viridis" if grid.metric == "val_accuracy" else "viridis_r"
        axes.imshow(numbers, aspect="auto", origin="lower", cmap=colours)
        axes.set_xticks(range(len(grid.rates)), [f"{rate:g}" for rate in grid.rates])
        axes.set_yticks(range(len(grid.decays)), [f"{decay:g}" for decay in grid.decays])
        axes.set(xlabel="learning rate", ylabel="weight decay λ")
        axes.set_title(grid.summary, fontsize=8)
        for row, line in enumerate(grid.found):
            for column, value in enumerate(line):
                shown = "–" if value is None else f"{value:.3g}"
                axes.text(column, row, shown, ha="center", va="center", fontsize=8, bbox=paper)
    content = io.BytesIO()
    drawing.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
