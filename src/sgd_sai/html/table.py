"""An HTML table that a phone shows, too."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sgd_sai.html.markup import Content, Html, element


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Content]],
    *,
    kind: str,
    words: Collection[str] = (),
) -> Html:
    """Return the table.

    Args:
        columns: their names.
        rows: the cells of each row.
        kind: its class: "results", of few rows, each of which is a list on a phone; "listing", of many short
            cells; or one that the page's own style knows.
        words: of a listing, the columns that hold no numbers.
    """
    head = element("tr", *(element("th", name, class_=_class(kind, name in words, 1)) for name in columns))
    body = (
        element(
            "tr",
            *(
                element("td", cell, class_=_class(kind, name in words, place), data_name=name)
                for place, (name, cell) in enumerate(zip(columns, row, strict=True))
            ),
        )
        for row in rows
    )
    return element("table", element("thead", head), element("tbody", *body), class_=kind)


def _class(kind: str, word: bool, place: int) -> str:
    """The class of a cell: numbers are aligned right; words but those of the first column are plain."""
    if kind != "listing" or (word and place):
        return ""
    return "name" if word else "number"
