"""A text that a model has made, as a run keeps it: the prompt, a bar, and what the model wrote after it."""

from __future__ import annotations

_BAR = "┃"


def joined(prompt: str, made: str) -> str:
    """Return the prompt and what was made of it as one text."""
    return f"{prompt}{_BAR}{made}"


def parted(text: str) -> tuple[str, str]:
    """Return the prompt and what was made of it."""
    prompt, _, made = text.partition(_BAR)
    return prompt, made
