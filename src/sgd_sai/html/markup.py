"""HTML from parts: text is always escaped, and `Html` alone is taken as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from sgd_sai.cli.printable import printable

_WITHOUT_END = frozenset({"br", "img", "input", "meta"})
#: In JSON, what a browser could read as HTML where the JSON stands in a <script>.
_AS_CODES = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&"})


@dataclass(frozen=True)
class Html:
    """A piece of HTML. Made of what the code itself holds; text from elsewhere goes through `element`.

    It is no `str`: a piece within an f-string shows as `Html(…)`, and a text where a piece is asked for is
    an error of types. So nothing is escaped twice, or not at all.
    """

    markup: str


#: What an element holds: text, which is escaped, and pieces, which are not.
Content = str | Html
NOTHING = Html("")


def element(tag: str, /, *content: Content, **attributes: str | bool | None) -> Html:
    """Return an element.

    Args:
        tag: as in "td".
        content: what it holds, in order.
        attributes: by name, as in `class_="name"` and `data_name="lr"`. True: without a value; False, None
            and "": not there.
    """
    given = {each.rstrip("_").replace("_", "-"): value for each, value in attributes.items() if value}
    words = "".join(
        f" {each}" + ("" if value is True else f'="{_text(str(value))}"') for each, value in given.items()
    )
    begin = f"<{tag}{words}>"
    return Html(begin if tag in _WITHOUT_END else f"{begin}{joined(content).markup}</{tag}>")


def joined(parts: Iterable[Content], between: str = "") -> Html:
    """Return the parts one after another, with a text `between` two of them."""
    return Html(_text(between).join(part.markup if isinstance(part, Html) else _text(part) for part in parts))


def script_json(value: Any) -> Html:
    """Return JSON to stand in a <script>; ValueError for a NaN or an infinity, which JSON has not."""
    return Html(json.dumps(value, allow_nan=False).translate(_AS_CODES))


def _text(text: str) -> str:
    return escape(printable(str(text), "\n\t"))
