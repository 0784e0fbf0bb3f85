"""`sgd-sai report`: a page that opens offline, and a figure, from the records of runs and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sgd_sai.cli import CommandError
from sgd_sai.lab import figure, page
from sgd_sai.lab.records import Run, read_runs, write_aside
from sgd_sai.lab.summary import by_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sgd-sai report`."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUNS", type=Path, help="folders with runs in or below them"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("report.html"),
        help="the page (default: report.html)",
    )
    parser.add_argument("--png", metavar="FILE", type=Path, help="also draw the curves into a PNG file")


def run(args: argparse.Namespace) -> int:
    """Write the page, and the figure if it is asked for; 0."""
    files = [("--out", args.out)] + ([("--png", args.png)] if args.png else [])
    for option, file in files:
        if not file.parent.is_dir() or file.is_dir():
            raise CommandError(f"{option}: cannot write {file}; allowed: a file in a folder that exists")
    try:
        runs = read_runs(args.runs)
    except ValueError as error:
        raise CommandError(str(error)) from None
    for option, file in files:
        try:
            _write_page(runs, file) if option == "--out" else _write_figure(runs, file)
        except OSError as error:
            raise CommandError(f"{option}: cannot write {file}: {error.strerror}") from None
        print(f"{'report' if option == '--out' else 'figure'}: {file}")
    return 0


def write(folders: Sequence[Path], path: Path) -> Path:
    """Write the page about the runs in `folders` to `path`, which is returned."""
    return _write_page(read_runs(folders), path)


def _write_page(runs: Sequence[Run], path: Path) -> Path:
    write_aside(path, page.build(by_task(runs)))
    return path


def _write_figure(runs: Sequence[Run], path: Path) -> Path:
    write_aside(path, figure.draw(by_task(runs)))
    return path
