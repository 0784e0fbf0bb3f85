"""An HTML table that a phone shows, too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    kind: str,
    words: Collection[str] = (),
) -> str:
    """Return the table.

    Args:
        columns: their names, plain text.
        rows: the cells of each row, HTML.
        kind: its class: "results", of few rows, each of which is a list on a phone; "listing", of many short
            cells; or one that the page's own style knows.
        words: of a listing, the columns that hold no numbers.
    """
    head = "".join(f"<th{_class(kind, name, name in words, 1)}>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{_class(kind, name, name in words, place)} data-name="{escape(name)}">{cell}</td>'
            for place, (name, cell) in enumerate(zip(columns, row, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _class(kind: str, name: str, word: bool, place: int) -> str:
    """The class of a cell: numbers are aligned right; words but those of the first column are plain."""
    if kind != "listing" or (word and place):
        return ""
    return ' class="name"' if word else ' class="number"'
