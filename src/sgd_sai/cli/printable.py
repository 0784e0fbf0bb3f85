"""What of a text can be shown, on a terminal, a page or a figure."""

from __future__ import annotations

import unicodedata


def printable(text: str, also: str = "") -> str:
    """The text with U+FFFD for each character that does not show: those that steer a terminal, such as ESC,
    turn the direction of writing, or are the half of one; but for those of `also`, as "\\n".
    """
    if text.isprintable():
        return text
    shown = (each.isprintable() or each in also or unicodedata.category(each) == "Zs" for each in text)
    return "".join(each if shows else "\ufffd" for each, shows in zip(text, shown, strict=True))
