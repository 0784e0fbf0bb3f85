"""A measurement leaves the committed records alone, from which README and docs come, unless it is told."""

from __future__ import annotations

import argparse
import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MEASUREMENTS = [
    *(
        path
        for folder in ("benchmarks", "benchmarks/gpu", "research/beyond_the_paper")
        for path in (ROOT / folder).glob("*.py")
    ),
]
COMMANDS = {
    path: path.read_text("utf-8") for path in MEASUREMENTS if "ArgumentParser(" in path.read_text("utf-8")
}


class _Asked(Exception):
    """In place of a run: what the command would do without options."""


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_without_out_writes_to_no_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_args(self: argparse.ArgumentParser, *_: Any) -> None:
        raise _Asked(self.get_default("out"))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    with pytest.raises(_Asked) as asked:
        module.main()
    [out] = asked.value.args
    assert out is None or Path(out).parts[0] == "runs", f"{path.name} writes to {out}"


def test_there_are_commands() -> None:
    names = {path.name for path in COMMANDS}
    assert {
        "run.py",
        "gsnr_is_sqrt_d.py",
        "low_precision.py",
        "__main__.py",
        "search.py",
        "prove.py",
    } <= names


@pytest.mark.parametrize(("target", "folder"), [("bench", "speed"), ("gpu", "gpu")])
def test_make_records_only_if_it_is_told(target: str, folder: str) -> None:
    for told, root in (((), "runs"), (("RECORD=1",), "benchmarks/results")):
        words = ["make", "--dry-run", "--assume-new=pyproject.toml", target, *told]
        shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"--out {root}/{folder}" in shown


def test_runs_are_ignored_by_git() -> None:
    assert "/runs/" in (ROOT / ".gitignore").read_text("utf-8").split()
