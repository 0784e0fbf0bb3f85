"""A page of charts and tables in one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

#: (light page, dark page).
Colours = tuple[str, str]


@dataclass(frozen=True)
class Axis:
    """An axis; `range` in its own units, as exponents of ten on a log axis."""

    title: str = ""
    log: bool = False
    range: Sequence[float] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart: its lines are dicts as `template/page.js` reads them: x, y, name, mode, colours, …"""

    id: str
    title: str
    x: Axis
    y: Axis
    lines: Sequence[Mapping[str, Any]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, plain text, a legend, charts, and HTML that is put in as it is."""

    title: str
    text: str
    charts: Sequence[Chart] = ()
    legend: Mapping[str, Colours] = field(default_factory=dict)
    html: str = ""


def build(
    title: str, sentences: Sequence[str], sections: Sequence[Section], provenance: Mapping[str, str]
) -> str:
    """The page."""
    own, shared = files("sgd_sai.analysis").joinpath("template"), files("sgd_sai.lab").joinpath("template")
    charts = [_data(chart) for section in sections for chart in section.charts]
    return Template(own.joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(title),
        style="".join(file.read_text("utf-8") for file in (shared / "report.css", own / "page.css")),
        script=own.joinpath("page.js").read_text("utf-8"),
        plotly=get_plotlyjs(),
        charts=json.dumps(charts, allow_nan=False).replace("</", "<\\/"),
        sentences="".join(f"<li>{escape(sentence)}</li>" for sentence in sentences),
        sections="".join(_section(section) for section in sections),
        provenance="".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in provenance.items()
        ),
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[str]) -> str:
    """An HTML table of plain text, narrow on a phone; `words` are the columns that hold no numbers."""

    def attributes(column: str, index: int) -> str:
        return "" if column in words and index else ' class="name"' if column in words else ' class="number"'

    head = "".join(f"<th{attributes(name, 1)}>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{attributes(name, index)} data-name="{escape(name)}">{escape(cell)}</td>'
            for index, (name, cell) in enumerate(zip(columns, row, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    return (
        f"<details open><summary>{len(rows)} rows</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></details>"
    )


def _data(chart: Chart) -> dict[str, Any]:
    axes = {
        name: {"title": axis.title, "log": axis.log, **({"range": axis.range} if axis.range else {})}
        for name, axis in (("x", chart.x), ("y", chart.y))
    }
    return {"id": chart.id, "lines": chart.lines, **axes}


def _section(section: Section) -> str:
    legend = "".join(
        f'<span class="key" style="--light:{light};--dark:{dark}">{escape(name)}</span>'
        for name, (light, dark) in section.legend.items()
    )
    charts = "".join(
        f"<figure><figcaption>{escape(chart.title)}"
        + (f" <small>{escape(chart.note)}</small>" if chart.note else "")
        + f'</figcaption><div class="chart" id="{chart.id}"></div></figure>'
        for chart in section.charts
    )
    number = {1: " single", 4: " four"}.get(len(section.charts), "")
    return (
        f'<section><h2>{escape(section.title)}</h2><p class="about">{escape(section.text)}</p>'
        + (f'<p class="legend">{legend}</p>' if legend else "")
        + (f'<div class="charts{number}">{charts}</div>' if charts else "")
        + f"{section.html}</section>"
    )
