"""A measurement leaves the committed records alone, from which README and docs come, unless it is told."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MEASUREMENTS = [
    *(
        path
        for folder in ("benchmarks", "benchmarks/gpu", "research/beyond_the_paper", "research/late_blocks")
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
        "full_training_in_24_gb.py",
        "gradients.py",
        "gsnr_is_sqrt_d.py",
        "low_precision.py",
        "__main__.py",
        "prove.py",
        "run.py",
        "search.py",
    } <= names


def test_a_script_that_takes_no_options_writes_nothing() -> None:
    """But the worker, whose folder `benchmarks/gpu/__main__.py` names."""
    scripts = [path for path in MEASUREMENTS if '__name__ == "__main__"' in path.read_text("utf-8")]
    others = [path for path in scripts if path not in COMMANDS and path.name != "worker.py"]
    assert [path.name for path in others] == ["import_time.py"]
    for path in others:
        assert not re.findall(r"write|mkdir|open\(|--out|append\(|results", path.read_text("utf-8")), (
            path.name
        )


def made(target: str, *told: str) -> str:
    """What `make` would run."""
    words = ["make", "--dry-run", "--assume-new=pyproject.toml", target, *told]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("target", "option", "own", "record"),
    [
        ("bench", "--out", "runs/speed", "benchmarks/results/speed"),
        ("gpu", "--out", "runs/gpu", "benchmarks/results/gpu"),
        ("study", "--tuned", "runs/tuned.jsonl", "src/sgd_sai/lab/tuned.jsonl"),
    ],
)
def test_make_records_only_if_it_is_told(target: str, option: str, own: str, record: str) -> None:
    assert f"{option} {record}" in made(target, "RECORD=1")
    assert f"{option} {own}" in made(target)


@pytest.mark.parametrize("target", ["bench", "demo", "gpu", "study"])
def test_make_writes_below_runs(target: str) -> None:
    written = re.findall(r"--(?:out|tuned) (\S+)", made(target))
    assert written
    assert {Path(path).parts[0] for path in written} == {"runs"}


#: Records that are no file of `--out`: printed, and packed by `sgd-sai report --pack`.
MADE_OTHERWISE = {"lr-transfer.json", "paper.json", "runs.jsonl", "curves.jsonl"}
RECORDS = [
    path
    for folder in ("benchmarks/results", "research/beyond_the_paper/records", "research/late_blocks/records")
    for path in sorted((ROOT / folder).rglob("*.json*"))
    if path.name not in MADE_OTHERWISE
]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_the_command_of_a_record_makes_it_where_it_is(path: Path) -> None:
    said = re.findall(r'"command": ?"([^"]*)"', path.read_text("utf-8"))
    assert said
    place = path.relative_to(ROOT)
    for command in (one for each in said for one in each.split(" ; ")):
        assert re.search(r"--out (\S+)", command)[1] in {str(place), str(place.parent)}, command  # type: ignore[index]


def test_the_records_of_a_bench_are_those_of_its_commands() -> None:
    run = importlib.import_module("benchmarks.run")
    folder = Path("benchmarks/results/speed")
    records = {
        str(file.relative_to(ROOT)): json.loads(file.read_text("utf-8"))["command"]
        for file in (ROOT / folder).iterdir()
    }
    assert records == {words[-1]: " ".join(["sgd-sai", *words]) for words in run.commands(folder)}


def test_runs_are_ignored_by_git() -> None:
    assert "/runs/" in (ROOT / ".gitignore").read_text("utf-8").split()
