"""A page: a title, sentences, sections with charts, and how it was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Literal

from plotly.offline import get_plotlyjs

#: (light page, dark page).
Colours = tuple[str, str]


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: beside it; of x, a mapping from each choice of the reader's to a title.
        log: whether it is logarithmic.
        range: its ends in its own units, as exponents of ten on a log axis; None: what the lines need.
        dtick: on a log axis, decades between two ticks; None: few of them, and 1, 2, 5 over few decades.
        percent: whether its ticks are percentages.
        hover: how a value is written beside the mouse, as d3 calls it.
        grid: whether lines go out from the ticks of x, as they do from those of y.
    """

    title: str | Mapping[str, str] = ""
    log: bool = False
    range: Sequence[float] | None = None
    dtick: int | None = None
    percent: bool = False
    hover: str | None = None
    grid: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart.

    `lines` are dicts as `template/page.js` reads them: y, x (or, where the reader chooses x, a mapping from
    each choice to its x), name, text, colours, mode, width, dash, size, symbol, opacity, hover (a template of
    Plotly), silent (no hover). A line with `several`, {names, values: a list of y for each x}, is many lines.
    """

    id: str
    title: str
    x: Axis
    y: Axis
    lines: Sequence[Mapping[str, Any]]
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Charts side by side: as many as fit, or in pairs that are wide, or a single one that is not."""

    charts: Sequence[Chart]
    layout: Literal["", "single", "pairs"] = ""


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, plain text, a legend, then rows of charts and HTML in this order."""

    title: str
    text: str
    parts: Sequence[Row | str] = ()
    legend: Mapping[str, Colours] = field(default_factory=dict)
    id: str = ""


def build(
    title: str,
    sentences: Sequence[str],
    sections: Sequence[Section],
    provenance: Mapping[str, Sequence[str]],
    *,
    choices: tuple[str, Mapping[str, str]] | None = None,
    method: str = "",
    note: str = "",
    style: str = "",
) -> str:
    """Return the page as HTML.

    Args:
        title: plain text, as all that is not said to be HTML.
        sentences: the result, under the title.
        sections: see `Section`.
        provenance: name → lines of HTML, in the footer.
        choices: a question and {key: answer}: the x that the reader may choose for all charts that have it.
        method, note: HTML before and after the provenance.
        style: CSS beyond that of every page.
    """
    charts = [
        chart
        for section in sections
        for part in section.parts
        if isinstance(part, Row)
        for chart in part.charts
    ]
    content = Template(_template("content.html")).substitute(
        title=escape(title),
        sentences="".join(f"<li>{escape(sentence)}</li>" for sentence in sentences),
        choices="" if choices is None else _choices(*choices),
        sections="".join(_section(section) for section in sections),
        method=method,
        provenance="".join(
            f"<dt>{escape(name)}</dt>" + "".join(f"<dd>{line}</dd>" for line in lines)
            for name, lines in provenance.items()
        ),
        note=note,
        charts=json.dumps([_data(chart) for chart in charts], allow_nan=False).replace("</", "<\\/"),
        script=_template("page.js"),
    )
    return document(title, content, style=_template("page.css") + style)


def document(title: str, content: str, *, style: str) -> str:
    """Return a page around `content`, HTML, whose scripts may use Plotly; `style` is its CSS."""
    return Template(_template("page.html")).substitute(
        title=escape(title), style=style, plotly=get_plotlyjs(), content=content
    )


def figure(caption: str, note: str, content: str) -> str:
    """Return a figure of `content`, HTML, with a caption and a note to it, plain text."""
    said = escape(caption) + (f" <small>{escape(note)}</small>" if note else "")
    return f"<figure><figcaption>{said}</figcaption>{content}</figure>"


def side_by_side(figures: Sequence[str], layout: str = "") -> str:
    """Return figures as one part of a section; nothing of none."""
    return f'<div class="{f"charts {layout}".rstrip()}">{"".join(figures)}</div>' if figures else ""


def _template(name: str) -> str:
    return (files("sgd_sai.html") / "template" / name).read_text("utf-8")


def _choices(question: str, answers: Mapping[str, str]) -> str:
    first = next(iter(answers))
    inputs = "".join(
        f'<label><input type="radio" name="x" value="{key}"{" checked" * (key == first)}>{escape(answer)}'
        "</label>\n"
        for key, answer in answers.items()
    )
    return f"<fieldset>\n<legend>{escape(question)}</legend>\n{inputs}</fieldset>\n"


def _data(chart: Chart) -> dict[str, Any]:
    """The chart as the script reads it; what is not set is not sent."""
    axes = {
        name: {key: value for key, value in asdict(axis).items() if value not in (None, "", False)}
        for name, axis in (("x", chart.x), ("y", chart.y))
    }
    return {"id": chart.id, "lines": chart.lines, **axes}


def _section(section: Section) -> str:
    legend = "".join(
        f'<span class="key" style="--light:{light};--dark:{dark}">{escape(name)}</span>'
        for name, (light, dark) in section.legend.items()
    )
    place = f' id="{escape(section.id)}"' if section.id else ""
    return (
        f"<section{place}><h2>{escape(section.title)}</h2>"
        + (f'<p class="about">{escape(section.text)}</p>' if section.text else "")
        + (f'<p class="legend">{legend}</p>' if legend else "")
        + "".join(_row(part) if isinstance(part, Row) else part for part in section.parts)
        + "</section>"
    )


def _row(row: Row) -> str:
    return side_by_side(
        [
            figure(chart.title, chart.note, f'<div class="chart" id="{escape(chart.id)}"></div>')
            for chart in row.charts
        ],
        row.layout,
    )
