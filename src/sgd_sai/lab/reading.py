"""Runs as reports, tables and figures read them: from folders of runs, and from packed studies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sgd_sai.lab import packed
from sgd_sai.lab.faults import UnusableRun
from sgd_sai.lab.records import METRICS, RUN, Run


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Every run in or below `folders`, in the order in which they were started.

    Raises:
        UnusableRun: there is none, or one is damaged.
    """
    runs = []
    for folder in folders:
        alone = sorted(path.parent for path in folder.rglob(RUN))
        studies = sorted(path.parent for path in folder.rglob(packed.RUNS))
        if not alone and not studies:
            raise UnusableRun(
                f"{folder}: holds no run; a run is a folder with {RUN} and {METRICS}, "
                f"a packed study one with {packed.RUNS}"
            )
        runs += [Run.read(each) for each in alone]
        runs += [run for each in studies for run in packed.read(each)]
    return sorted(runs, key=lambda run: run.record.date)
