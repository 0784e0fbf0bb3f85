"""The README's figures are those of the records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.sweep.results import grids

ROOT = Path(__file__).parent.parent
SWEEP = ROOT / "benchmarks" / "results" / "sweep"


def test_tables_are_those_of_the_records() -> None:
    check = [sys.executable, "-m", "scripts.tables", "--check"]
    result = subprocess.run(check, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_the_means_of_the_sweeps_are_those_of_their_records() -> None:
    """The table of docs/study.md."""
    page = (ROOT / "docs" / "study.md").read_text("utf-8")
    (mean,) = (line for line in page.splitlines() if line.startswith("| mean over the grid |"))
    (best,) = (line for line in page.splitlines() if line.startswith("| best |"))
    found = {grid.title.split(", ")[1]: grid for grid in grids(read_runs([SWEEP]))}
    columns = ("SGD-SaI", "AdamW", "SGD with momentum")
    for line, of in ((mean, "mean"), (best, "best")):
        shown = [f"{100 * getattr(found[name], of):.1f} %" for name in columns]
        assert [cell.strip() for cell in line.strip("|").split("|")][1:] == shown
