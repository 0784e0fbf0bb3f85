"""The output of `sgd-sai gsnr` and `sgd-sai lr-find`: JSON, pages, provenance, progress."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sgd_sai.cli import CommandError, console
from sgd_sai.files import as_json, write_aside


def number(value: float) -> float | None:
    """Return a number as JSON has it: None for a NaN or an infinity."""
    return value if math.isfinite(value) else None


def provenance_lines(record: dict[str, Any]) -> dict[str, list[str]]:
    """Return `provenance` as a page shows it."""
    machine = record["machine"]
    lines = {
        "Command": record["command"],
        "When": record["date"][:16].replace("T", " ") + " UTC",
        "Machine": f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "Versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    return {name: [line] for name, line in lines.items()}


def print_json(record: dict[str, Any]) -> None:
    """Print a record as JSON, which has no NaN or Infinity."""
    console.print_json(as_json(record))


def give(
    record: dict[str, Any],
    args: argparse.Namespace,
    *,
    page: Callable[[dict[str, Any]], str],
    text: Callable[[dict[str, Any]], None],
) -> int:
    """Give a record as asked: as a page in the file --html, and on the terminal as --json or as `text`; 0."""
    if args.html is not None:
        try:
            write_aside(args.html, page(record))
        except OSError as error:
            raise CommandError(f"--html: cannot write to {args.html}: {error.strerror}") from None
    if args.json:
        print_json(record)
    else:
        text(record)
    return 0


@contextmanager
def progress() -> Iterator[Callable[[str, int, float], None]]:
    """Show on the terminal where a training is; the function is called with (name, step, loss)."""
    with console.progress("{task.description}", "step {task.completed}") as shown:
        lines: dict[str, Any] = {}

        def watch(name: str, step: int, loss: float) -> None:
            if name not in lines:
                lines[name] = shown.add_task(name, total=None)
            shown.update(lines[name], completed=step, description=f"{name}, loss {loss:.4g},")

        yield watch
