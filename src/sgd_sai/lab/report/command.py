"""`sgd-sai report`: a page that opens offline, and its figures, from the records of runs and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sgd_sai.cli import CommandError
from sgd_sai.cli.console import print_line
from sgd_sai.files import write_aside
from sgd_sai.lab import packed
from sgd_sai.lab.faults import faults_told
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.records import RUN
from sgd_sai.lab.report import figure, page
from sgd_sai.lab.summary import by_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sgd-sai report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        type=Path,
        help="folders with runs or packed studies",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("report.html"),
        help="the page (default: report.html); its figures go beside it, as report-steps.png",
    )
    parser.add_argument(
        "--pack",
        metavar="FOLDER",
        type=Path,
        help="instead of the page, write all the runs into two files of FOLDER, which `report` reads as well",
    )


def run(args: argparse.Namespace) -> int:
    """Write the page and its figures, or the packed study; 0."""
    if args.pack is not None:
        return _pack(args.runs, args.pack)
    if not args.out.parent.is_dir() or args.out.is_dir():
        raise CommandError(f"--out: cannot write {args.out}; allowed: a file in a folder that exists")
    with faults_told("--out", args.out):
        write(args.runs, args.out)
    return 0


def _pack(folders: Sequence[Path], path: Path) -> int:
    if not path.parent.is_dir() or path.is_file():
        raise CommandError(f"--pack: cannot write {path}; allowed: a folder in a folder that exists")
    if any(path.rglob(RUN)):
        raise CommandError(f"--pack: {path} holds the folders of runs; allowed: a folder without")
    with faults_told("--pack", path):
        packed.write(read_runs(folders), path)
    print_line(f"packed: {path}")
    return 0


def write(folders: Sequence[Path], path: Path) -> None:
    """Write the page about the runs in `folders` to `path`, its figures beside it, and say so."""
    runs = read_runs(folders)
    write_aside(path, page.build(runs))
    print_line(f"report: {path}")
    for name, picture in figure.draw(by_task(runs)).items():
        beside = path.with_name(f"{path.stem}-{name}.png")
        write_aside(beside, picture)
        print_line(f"figure: {beside}")
