"""The tests that need a GPU: `pytest -m gpu`. A row for each that failed or was slow, and the counts."""

from __future__ import annotations

import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.worker import Record

_SLOW = 3.0  # seconds from which a test that passes is named
_DRY = ["tests/test_on_a_gpu.py", "-k", "gradient_release and cpu and fp32"]


class _Reporter:
    """Hears of every test as it ends; with xdist, in the process that hands them out."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._counts: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._seconds[report.nodeid] += report.duration
        if report.when == "call" or report.outcome != "passed":
            self._count(report)
        seconds = round(self._seconds[report.nodeid], 1)
        if report.when == "teardown" and seconds >= _SLOW:
            self._record.add({"name": report.nodeid, "outcome": "slow", "seconds": seconds})

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._count(report)

    def _count(self, report: Any) -> None:
        text = str(report.longrepr or "")
        # A test file may need packages that are missing here.
        absent = report.when == "collect" and "No module named" in text
        self._counts["not importable" if absent else report.outcome] += 1
        self._record.note(counts=dict(self._counts))
        if report.failed:
            print(f"{report.nodeid}\n{text[-1500:]}\n", file=sys.stderr)
            raised = [line[1:].strip() for line in text.splitlines() if line.startswith("E  ")]
            message = " ".join(raised[:3] or text.splitlines()[-1:])[:200]
            self._record.add({"name": report.nodeid, "absent" if absent else "error": message})


def run(record: Record, device: torch.device, *, dry: bool) -> None:
    """Run them, eight at a time where xdist and as many cores are there.

    Only files that hold such a test are collected: others may import what this machine lacks.
    """
    files = [file for file in Path("tests").rglob("test_*.py") if "mark.gpu" in file.read_text("utf-8")]
    chosen = _DRY if dry else ["-m", "gpu", *sorted(map(str, files))]
    # The project's own options name plugins that may be missing here.
    words = "-q -o addopts= -p no:cacheprovider --tb=short --no-summary --continue-on-collection-errors"
    options = words.split()
    if find_spec("xdist") and not dry:
        options += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
    if find_spec("pytest_timeout"):
        options += ["--timeout", "60"]
    status = pytest.main([*options, *chosen], plugins=[_Reporter(record)])
    record.note(pytest_status=int(status))
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with status {int(status)}: no test ran as it should")
