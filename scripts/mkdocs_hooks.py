"""Settings of the site that are code: mkdocs.yml names this file."""

from __future__ import annotations

import re
from typing import Any

import griffe


def on_page_content(html: str, **_: Any) -> str:
    """MkDocs: unfold the source of functions where a page shows it."""
    return html.replace('<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" open>')


class Docstrings(griffe.Extension):
    """Griffe: docstrings are plain text with a few reStructuredText habits; the site wants Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Turn them into Markdown before they are parsed."""
        if obj.docstring is None:
            return
        if obj.docstring.value == "See the class.":
            obj.docstring = None
            return
        text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
        text = text.replace("::\n", ":\n").replace("``", "`")
        obj.docstring.value = re.sub(r"<(\w+)>", r"&lt;\1&gt;", text)
