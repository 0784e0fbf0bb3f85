"""The grids of a sweep as heat maps and surfaces: a page that opens offline, and a PNG."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from sgd_sai import html
from sgd_sai.html import Html, element, joined, plotly_text
from sgd_sai.lab.numbers import exact
from sgd_sai.lab.records import Run
from sgd_sai.lab.report.figure import in_rows, plain, png
from sgd_sai.lab.sweep.results import Grid, grids

STYLE = """
.sweep { display: grid; grid-template-columns: 1fr 1fr; }
@media (max-width: 50rem) { .sweep { grid-template-columns: 1fr; } }
.sweep > div { min-width: 0; }
.wide { overflow-x: auto; }
table.robustness { border-collapse: collapse; margin: 1rem 0; }
table.robustness :is(th, td) { text-align: right; padding: 0.2rem 0.7rem; }
table.robustness :is(th, td):first-child { text-align: left; }
"""

#: Of the page that holds nothing else.
_ALONE = """
:root { color-scheme: light; }
body { font-family: system-ui, sans-serif; margin: 1rem; }
"""


def page(runs: Sequence[Run]) -> str:
    """Return a table of the grids, and a heat map and a surface of each, side by side where there is room."""
    content = joined([element("h1", "Learning rate × weight decay"), surfaces(runs)])
    return html.document("Sweep", content, style=_ALONE + STYLE)


def surfaces(runs: Sequence[Run]) -> Html:
    """Return the same as a part of a page of `sgd_sai.html` that has `STYLE`."""
    found = grids(runs)
    columns = ("", "best", "mean over the grid", "finished", "best on an edge")
    rows = [
        [
            grid.title,
            _shown(grid.best),
            _shown(grid.mean),
            f"{len(grid.numbers)} of {len(grid.rates) * len(grid.decays)}",
            ", ".join(grid.edges) or "no",
        ]
        for grid in found
    ]
    table = html.table(columns, rows, kind="robustness")
    return joined([element("div", table, class_="wide"), *map(_charts, found)])


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _charts(grid: Grid) -> Html:
    x, y = ([exact(value) for value in values] for values in (grid.rates, grid.decays))
    style = {"colorscale": "Viridis", "reversescale": grid.metric != "val_accuracy", "showscale": False}
    layout = {"template": "plotly_white", "height": 380, "margin": {"l": 60, "r": 10, "t": 10, "b": 50}}
    heat = go.Figure(go.Heatmap(x=x, y=y, z=grid.found, texttemplate="%{z:.3g}", **style), layout)
    heat.update_xaxes(title="learning rate", type="category")
    heat.update_yaxes(title="weight decay λ", type="category")
    surface = go.Figure(go.Surface(z=grid.found, **style), layout)  # over the points' indices
    surface.update_scenes(
        xaxis={"title": "learning rate", "tickvals": list(range(len(x))), "ticktext": x},
        yaxis={"title": "λ", "tickvals": list(range(len(y))), "ticktext": y},
        zaxis={"title": plotly_text(grid.metric.replace("val_", ""))},
        camera={"eye": {"x": 1.7, "y": 1.7, "z": 1.0}},
    )
    drawn = (
        Html(chart.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True}))
        for chart in (heat, surface)
    )
    sides = element("div", *(element("div", chart) for chart in drawn), class_="sweep")
    return joined([element("h3", grid.title), element("p", grid.summary), sides])


def figure(runs: Sequence[Run]) -> bytes:
    """Return the heat maps, on one range of colours for each metric, as the bytes of a PNG."""
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
        axes.set_xticks(range(len(grid.rates)), [exact(rate) for rate in grid.rates])
        axes.set_yticks(range(len(grid.decays)), [exact(decay) for decay in grid.decays])
        axes.set(xlabel="learning rate", ylabel="weight decay λ")
        axes.set_title(plain(grid.summary.replace(": ", "\n", 1).replace("; ", "\n")), fontsize=8)
        for row, line in enumerate(grid.found):
            for column, value in enumerate(line):
                shown = "–" if value is None else f"{value:.3g}"
                axes.text(column, row, shown, ha="center", va="center", fontsize=8, bbox=paper)
    return png(drawing)
