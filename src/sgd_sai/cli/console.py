"""Tables, sentences and progress of the commands, drawn by `rich` on a terminal.

Tables and sentences are plain text elsewhere, or without `rich`; progress is not shown. What steers a
terminal is not printed: names come from models and records, and could hold anything.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sgd_sai.cli.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

_WIDE = 180  # columns, where there is no terminal


def terminal() -> Console | None:
    """Return the terminal; None where there is none, or no `rich` to draw on it."""
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        return None
    from rich.console import Console

    return Console(highlight=False)


def width() -> int:
    """Return how many characters a line may have; plain text is given room for every table."""
    drawn_on = terminal()
    return _WIDE if drawn_on is None else drawn_on.width


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Collection[str],
    note: str = "",
    styles: Sequence[str] = (),
) -> None:
    """Print a table under its title.

    Args:
        title, note: lines above and below it.
        columns: their names.
        rows: the cells of each row.
        words: the columns that hold no numbers: they are aligned left, and may go over several lines.
        styles: of each row, as `rich` calls them; none of them: all rows are plain.
    """
    drawn_on = terminal()
    rows = [[*map(printable, row)] for row in rows]
    title, note = printable(title), printable(note, "\n")
    if drawn_on is None:
        _print_plain(title, columns, rows, words, note)
    else:
        _draw(drawn_on, title, columns, rows, words, note, styles)


def print_sentence(text: str) -> None:
    """Print a sentence with a bullet."""
    drawn_on = terminal()
    if drawn_on is None:
        print_line(f"• {text}")
    else:
        drawn_on.print(f"• {printable(text)}", markup=False)


def print_line(text: str) -> None:
    """Print a line as it is, however long."""
    print(printable(text))


def print_json(text: str) -> None:
    """Print JSON, by their codes the characters that do not show, or that the output cannot encode."""
    encoding = sys.stdout.encoding or "utf-8"

    def as_it_is(each: str) -> bool:
        return each == "\n" or (
            each.isprintable() and each == each.encode(encoding, "replace").decode(encoding)
        )

    print("".join(each if as_it_is(each) else json.dumps(each)[1:-1] for each in text), end="")


@contextmanager
def progress(*columns: str | ProgressColumn) -> Iterator[Progress]:
    """Yield a progress bar on stderr, which is gone when the work is done; nothing if that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as shown:
        yield shown


def _draw(
    drawn_on: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Collection[str],
    note: str,
    styles: Sequence[str],
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        word = column in words
        # A number is never cut; where the terminal is narrow, names go over several lines.
        table.add_column(column, justify="left" if word else "right", no_wrap=not word, overflow="fold")
    for row, style in zip(rows, styles or [""] * len(rows), strict=True):
        table.add_row(*map(Text, row), style=style)  # not markup: a name may hold brackets
    drawn_on.print(title, style="italic", markup=False)
    drawn_on.print(table)
    if note:
        drawn_on.print(note, style="dim", markup=False)


def _print_plain(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str], note: str
) -> None:
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(title)
    for cells in lines:
        padded = (
            cell.ljust(width) if column in words else cell.rjust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        )
        print("  ".join(padded).rstrip())
    if note:
        print(note)
