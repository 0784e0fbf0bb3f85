"""The grids of `sgd-sai sweep` as heat maps and surfaces: a page that opens offline, and a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sgd_sai.lab.figure import in_rows, png
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
    def best(self) -> float | None:
        """The best result."""
        return (max if self.metric == "val_accuracy" else min)(self.numbers, default=None)

    @property
    def mean(self) -> float | None:
        """Over the points that finished; of accuracies over all, since a run that diverged is worth 0."""
        count = len(self.rates) * len(self.decays) if self.metric == "val_accuracy" else len(self.numbers)
        return sum(self.numbers) / count if count else None

    @property
    def edges(self) -> list[str]:
        """Which axes the best result lies on an edge of; an axis of one value has none, and λ = 0 is none."""
        places = [
            (lr, decay)
            for decay, row in zip(self.decays, self.found, strict=True)
            for lr, value in zip(self.rates, row, strict=True)
            if value is not None and value == self.best
        ]
        on_rates = places and all(lr in (self.rates[0], self.rates[-1]) for lr, _ in places)
        on_decays = places and all(d in (self.decays[0], self.decays[-1]) and d for _, d in places)
        found = (("learning rate", on_rates, self.rates), ("weight decay", on_decays, self.decays))
        return [name for name, on_edge, values in found if on_edge and len(values) > 1]

    @property
    def numbers(self) -> list[float]:
        """The results that there are."""
        return [value for row in self.found for value in row if value is not None]

    @property
    def summary(self) -> str:
        """The best, the mean over the grid as the paper gives it, how many finished, and what to widen."""
        count = len(self.rates) * len(self.decays)
        if self.best is None or self.mean is None:
            return f"{self.title}: none of {count} points finished"
        words = f"{self.title}: best {self.best:.4g}, mean {self.mean:.4g}"
        if len(self.numbers) < count:
            words += f", {len(self.numbers)} of {count} points finished"
        return words + "".join(f"; the best is on the edge of the {axis}s" for axis in self.edges)


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


STYLE = """
body { font-family: system-ui, sans-serif; margin: 1rem; }
.sweep { display: grid; grid-template-columns: 1fr 1fr; }
@media (max-width: 50rem) { .sweep { grid-template-columns: 1fr; } }
.sweep > div { min-width: 0; }
.wide { overflow-x: auto; }
table.robustness { border-collapse: collapse; margin: 1rem 0; }
table.robustness :is(th, td) { text-align: right; padding: 0.2rem 0.7rem; }
table.robustness :is(th, td):first-child { text-align: left; }
"""


def page(runs: Sequence[Run]) -> str:
    """A table of the grids, and a heat map and a surface of each, side by side where there is room."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Sweep</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>Learning rate × weight decay</h1>{surfaces(runs)}</body></html>"
    )


def surfaces(runs: Sequence[Run]) -> str:
    """The same as a fragment, for a page that has `STYLE` and Plotly's script."""
    found = grids(runs)
    rows = "".join(
        f"<tr><td>{escape(grid.title)}</td><td>{_shown(grid.best)}</td><td>{_shown(grid.mean)}</td>"
        f"<td>{len(grid.numbers)} of {len(grid.rates) * len(grid.decays)}</td>"
        f"<td>{', '.join(grid.edges) or 'no'}</td></tr>"
        for grid in found
    )
    table = (
        '<div class="wide"><table class="robustness"><tr><th></th><th>best</th>'
        f"<th>mean over the grid</th><th>finished</th><th>best on an edge</th></tr>{rows}</table></div>"
    )
    return table + "".join(_charts(grid) for grid in found)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _charts(grid: Grid) -> str:
    x, y = ([f"{value:g}" for value in values] for values in (grid.rates, grid.decays))
    style = {"colorscale": "Viridis", "reversescale": grid.metric != "val_accuracy", "showscale": False}
    layout = {"template": "plotly_white", "height": 380, "margin": {"l": 60, "r": 10, "t": 10, "b": 50}}
    heat = go.Figure(go.Heatmap(x=x, y=y, z=grid.found, texttemplate="%{z:.3g}", **style), layout)
    heat.update_xaxes(title="learning rate", type="category")
    heat.update_yaxes(title="weight decay λ", type="category")
    surface = go.Figure(go.Surface(z=grid.found, **style), layout)  # over the points' indices
    surface.update_scenes(
        xaxis={"title": "learning rate", "tickvals": list(range(len(x))), "ticktext": x},
        yaxis={"title": "λ", "tickvals": list(range(len(y))), "ticktext": y},
        zaxis={"title": grid.metric.replace("val_", "")},
        camera={"eye": {"x": 1.7, "y": 1.7, "z": 1.0}},
    )
    drawn = (
        chart.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True})
        for chart in (heat, surface)
    )
    sides = "".join(f"<div>{chart}</div>" for chart in drawn)
    return f'<h3>{escape(grid.title)}</h3><p>{escape(grid.summary)}</p><div class="sweep">{sides}</div>'


def figure(runs: Sequence[Run]) -> bytes:
    """The heat maps, on one range of colours for each metric, as the bytes of a PNG."""
    found = grids(runs)
    ranges = {
        metric: (min(values), max(values))
        for metric in {grid.metric for grid in found}
        if (values := [value for grid in found if grid.metric == metric for value in grid.numbers])
    }
    paper = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2}  # under the numbers
    drawing, places = in_rows(len(found), (5.0, 3.6), dpi=150)
    for axes, grid in zip(places, found, strict=True):
        numbers = [[float("nan") if value is None else value for value in row] for row in grid.found]
        colours = "viridis" if grid.metric == "val_accuracy" else "viridis_r"
        low, high = ranges.get(grid.metric, (0.0, 1.0))
        axes.imshow(numbers, aspect="auto", origin="lower", cmap=colours, vmin=low, vmax=high)
        axes.set_xticks(range(len(grid.rates)), [f"{rate:g}" for rate in grid.rates])
        axes.set_yticks(range(len(grid.decays)), [f"{decay:g}" for decay in grid.decays])
        axes.set(xlabel="learning rate", ylabel="weight decay λ")
        axes.set_title(grid.summary.replace(": ", "\n", 1).replace("; ", "\n"), fontsize=8)
        for row, line in enumerate(grid.found):
            for column, value in enumerate(line):
                shown = "–" if value is None else f"{value:.3g}"
                axes.text(column, row, shown, ha="center", va="center", fontsize=8, bbox=paper)
    return png(drawing)
