"""How numbers are spelled where two of them must not be mistaken for each other."""

from __future__ import annotations


def exact(value: float) -> str:
    """Return the short spelling of six digits if that is the number, else the shortest that is it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
