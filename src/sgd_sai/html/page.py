"""A page: a title, sentences, sections with charts, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Literal

from plotly.offline import get_plotlyjs

from sgd_sai.cli.printable import printable
from sgd_sai.html.markup import NOTHING, Content, Html, element, joined, script_json

#: (light page, dark page).
Colours = tuple[str, str]
#: What of a chart's data Plotly draws as text.
_DRAWN = ("title", "name", "names", "text")


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
    parts: Sequence[Row | Html] = ()
    legend: Mapping[str, Colours] = field(default_factory=dict)
    id: str = ""


def build(
    title: str,
    sentences: Sequence[str],
    sections: Sequence[Section],
    provenance: Mapping[str, Sequence[Content]],
    *,
    choices: tuple[str, Mapping[str, str]] | None = None,
    method: Html = NOTHING,
    note: Html = NOTHING,
    style: str = "",
) -> str:
    """Return the page as HTML.

    Args:
        title: of the page.
        sentences: the result, under the title.
        sections: see `Section`.
        provenance: name → lines, in the footer.
        choices: a question and {key: answer}: the x that the reader may choose for all charts that have it.
        method, note: before and after the provenance.
        style: CSS beyond that of every page.
    """
    charts = [
        chart
        for section in sections
        for part in section.parts
        if isinstance(part, Row)
        for chart in part.charts
    ]
    parts = {
        "title": joined([title]),
        "sentences": joined(element("li", sentence) for sentence in sentences),
        "choices": NOTHING if choices is None else _choices(*choices),
        "sections": joined(_section(section) for section in sections),
        "method": method,
        "provenance": joined(
            part
            for name, lines in provenance.items()
            for part in (element("dt", name), *(element("dd", line) for line in lines))
        ),
        "note": note,
        "charts": script_json([_data(chart) for chart in charts]),
        "script": _template("page.js"),
    }
    return document(title, _filled("content.html", parts), style=_template("page.css").markup + style)


def document(title: str, content: Html, *, style: str) -> str:
    """Return a page around `content`, whose scripts may use Plotly; `style` is its CSS."""
    parts = {
        "title": joined([title]),
        "style": Html(style),
        "plotly": Html(get_plotlyjs()),
        "content": content,
    }
    return _filled("page.html", parts).markup


def figure(caption: str, note: str, content: Content) -> Html:
    """Return a figure of `content`, with a caption and a note to it."""
    said = (caption, " ", element("small", note)) if note else (caption,)
    return element("figure", element("figcaption", *said), content)


def side_by_side(figures: Iterable[Html], layout: str = "") -> Html:
    """Return figures as one part of a section; nothing of none."""
    figures = list(figures)
    return element("div", *figures, class_=f"charts {layout}".rstrip()) if figures else NOTHING


def plotly_text(text: str) -> str:
    """Return a text as Plotly takes it, which reads some tags in what it draws."""
    return escape(printable(text), quote=False)


def _template(name: str) -> Html:
    return Html((files("sgd_sai.html") / "template" / name).read_text("utf-8"))


def _filled(template: str, parts: Mapping[str, Html]) -> Html:
    markup = {name: part.markup for name, part in parts.items()}
    return Html(Template(_template(template).markup).substitute(markup))


def _choices(question: str, answers: Mapping[str, str]) -> Html:
    first = next(iter(answers))
    labels = [
        element("label", element("input", type="radio", name="x", value=key, checked=key == first), answer)
        for key, answer in answers.items()
    ]
    return element("fieldset", element("legend", question), *labels)


def _data(chart: Chart) -> dict[str, Any]:
    """The chart as the script reads it; what is not set is not sent."""
    axes = {
        name: {key: value for key, value in asdict(axis).items() if value not in (None, "", False)}
        for name, axis in (("x", chart.x), ("y", chart.y))
    }
    return {"id": chart.id, **_shown({"lines": chart.lines, **axes})}


def _shown(value: Any, key: str = "") -> Any:
    """The value with the texts that Plotly draws as it takes them."""
    if isinstance(value, Mapping):
        return {each: _shown(inner, key if key in _DRAWN else each) for each, inner in value.items()}
    if isinstance(value, str):
        return plotly_text(value) if key in _DRAWN else value
    return [_shown(each, key) for each in value] if isinstance(value, list | tuple) else value


def _section(section: Section) -> Html:
    keys = [
        element("span", name, class_="key", style=f"--light:{light};--dark:{dark}")
        for name, (light, dark) in section.legend.items()
    ]
    return element(
        "section",
        element("h2", section.title),
        element("p", section.text, class_="about") if section.text else NOTHING,
        element("p", *keys, class_="legend") if keys else NOTHING,
        *(_row(part) if isinstance(part, Row) else part for part in section.parts),
        id=section.id,
    )


def _row(row: Row) -> Html:
    charts = (
        figure(chart.title, chart.note, element("div", class_="chart", id=chart.id)) for chart in row.charts
    )
    return side_by_side(charts, row.layout)
