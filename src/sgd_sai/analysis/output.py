"""What `sgd-sai gsnr` and `sgd-sai lr-find` share: arguments, tables, JSON, files."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from sgd_sai.cli import CommandError
from sgd_sai.lab import arguments
from sgd_sai.lab import provenance as lab_provenance
from sgd_sai.lab.records import write_aside
from sgd_sai.lab.tasks import TASKS


@dataclass(frozen=True)
class Shared:
    """The options that both commands have, checked."""

    seed: int
    clip: float | None


def add_shared(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The arguments that both commands take; `optional`: WORKLOAD may be missing."""
    parser.add_argument(
        "workload",
        nargs="?" if optional else None,
        metavar="WORKLOAD",
        help=f"{', '.join(TASKS)}, or module:factory, a callable of your own without arguments that returns "
        "(model, batches) or (model, batches, loss_fn)",
    )
    parser.add_argument("--seed", default="0", metavar="N", help="of the weights and batches (default: 0)")
    parser.add_argument(
        "--clip", metavar="X", help="largest gradient norm (default: the task's own; none for a factory)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures to FILE")


def checked(args: argparse.Namespace) -> Shared:
    """The shared options; CommandError names one that is not allowed."""
    if args.html is not None and (args.html.is_dir() or not args.html.parent.is_dir()):
        raise CommandError(f"--html: given {args.html}; allowed: a file in a folder that exists")
    return Shared(
        seed=arguments.integer("--seed", args.seed, least=0),
        clip=None if args.clip is None else arguments.learning_rate("--clip", args.clip),
    )


def number(value: float) -> float | None:
    """A number as JSON has it: None for a NaN or an infinity."""
    return value if math.isfinite(value) else None


def provenance() -> dict[str, Any]:
    """Command, date, machine, versions."""
    return {
        "command": lab_provenance.command(),
        "date": lab_provenance.now(),
        "machine": lab_provenance.machine(),
        "versions": lab_provenance.versions(),
    }


def provenance_lines(record: dict[str, Any]) -> dict[str, str]:
    """`provenance` as a page shows it."""
    machine = record["machine"]
    return {
        "Command": record["command"],
        "When": record["date"][:16].replace("T", " ") + " UTC",
        "Machine": f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "Versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }


def print_json(record: dict[str, Any]) -> None:
    """Print it, without NaN or Infinity, which JSON has not."""
    print(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False))


def write(path: Path, page: str) -> None:
    """Write a page aside and rename it."""
    try:
        write_aside(path, page)
    except OSError as error:
        raise CommandError(f"--html: cannot write to {path}: {error.strerror}") from None


def console() -> Console:
    """The terminal; wide enough for a whole table where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=180)


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str]
) -> None:
    """A table; `words` are the columns that hold no numbers."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        word = column in words
        # A number is never cut; where the terminal is narrow, names go over several lines.
        table.add_column(column, justify="left" if word else "right", no_wrap=not word, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: a name may hold brackets
    console.print(title, style="italic", highlight=False, markup=False)
    console.print(table)


@contextmanager
def progress() -> Iterator[Callable[[str, int, float], None]]:
    """A line on the terminal that says where a training is: call it with (what, step, loss)."""
    columns = (TextColumn("{task.description}"), TextColumn("step {task.completed}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        lines: dict[str, Any] = {}

        def watch(what: str, step: int, loss: float) -> None:
            if what not in lines:
                lines[what] = shown.add_task(what, total=None)
            shown.update(lines[what], completed=step, description=f"{what}, loss {loss:.4g},")

        yield watch
