"""The lines of docs/distributed.md that start training, each run, against one process."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import LR, STEPS
from tiny import LATE, Tiny, batch, loss_of
from world import ended, start_as_torchrun

from sgd_sai import SGDSaI
from sgd_sai.cli import main

ROOT = Path(__file__).parents[2]
EVERY = re.findall(r"^torchrun .*$", (ROOT / "docs" / "distributed.md").read_text("utf-8"), re.MULTILINE)
LINES = [line for line in EVERY if "launch.py" in line]
COMPARE = [line for line in EVERY if line not in LINES]


def command(line: str) -> dict[str, Any]:
    """How a line is started: the interpreter's own torchrun, the environment's own sgd-sai."""
    arguments = line.replace("tests/", f"{ROOT}/tests/").split()[1:]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        "args": [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments],
        "env": {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": path},
    }


def run(line: str, folder: Path) -> None:
    ran = subprocess.run(**command(line), cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def truth() -> dict[str, torch.Tensor]:
    model = Tiny()
    optimizer = SGDSaI(model.parameters(), lr=LR)
    for step in range(STEPS):
        loss_of(model, batch(step), LATE).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}


def test_every_way_has_a_line() -> None:
    assert [line.split()[4] for line in LINES] == ["ddp", "fsdp2", "accelerate", "trainer"]
    assert [line.split()[-1] for line in COMPARE] == ["runs/ddp", "runs/fsdp"]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[4])
def test_line(line: str, tmp_path: Path, truth: dict[str, torch.Tensor]) -> None:
    run(line, tmp_path)
    found = torch.load(tmp_path / "weights.pt")
    for name, p in truth.items():
        assert (found[name] - p).norm() <= 1e-5 * p.norm(), name


def compare(folder: Path, line: str, held_at: int | None = None) -> None:
    """What a rank does that torchrun starts by a line of `COMPARE`; held.py explains `held_at`."""
    from held import hold
    from sgd_sai.lab.runs import training

    training.EVALUATIONS = 2  # they take most of the time
    if held_at is not None:
        hold(held_at)
    os.chdir(folder)
    assert main(shlex.split(line.partition("--no-python sgd-sai ")[2])) == 0


def by_ranks(size: int, folder: Path, line: str) -> None:
    """Run it to its end."""
    ranks = start_as_torchrun(size, compare, folder, line)
    assert ended(ranks) == []
    assert [rank.exitcode for rank in ranks] == [0] * size


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `COMPARE`, by one process."""
    pytest.importorskip("transformers", reason="the lab extra is not installed")
    folder = tmp_path_factory.mktemp("alone")
    by_ranks(1, folder, COMPARE[0])
    return folder / "runs" / "ddp" / "gpt-sgd-sai-0"


def saved(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return state


@pytest.mark.parametrize("line", COMPARE, ids=lambda line: line.split()[-1])
def test_compare(line: str, tmp_path: Path, alone: Path) -> None:
    run(line, tmp_path)
    out = tmp_path / line.split()[-1]
    record, expected = (json.loads((of / "run.json").read_text()) for of in (out / "gpt-sgd-sai-0", alone))
    assert record["command"] == line
    assert (record["config"]["ranks"], record["config"]["fsdp"]) == (2, "--fsdp" in line)
    assert record["result"]["val_loss"] == pytest.approx(expected["result"]["val_loss"], rel=1e-5)
    assert record["result"]["state_bytes"] == pytest.approx(expected["result"]["state_bytes"], rel=1e-3)
    weights, truth = saved(out / "gpt-sgd-sai-0")["model"], saved(alone)["model"]
    assert weights.keys() == truth.keys()
    for name, value in truth.items():
        assert (weights[name] - value).norm() <= 1e-5 * value.norm(), name
    assert (out / "report.html").exists()
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"gpt-sgd-sai-0"}


@pytest.mark.parametrize("line", COMPARE, ids=lambda line: line.split()[-1])
def test_compare_resumes(line: str, tmp_path: Path) -> None:
    """Killed after a checkpoint, it ends with the weights of a run that was not."""
    pytest.importorskip("transformers", reason="the lab extra is not installed")
    from sgd_sai.lab.records import METRICS
    from sgd_sai.lab.runs.training import CHECKPOINT_EVERY, LOG_EVERY

    out, killed_at = line.split()[-1], CHECKPOINT_EVERY + LOG_EVERY
    longer = line.replace("--steps 20", "--steps 40")
    by_ranks(2, tmp_path, longer.replace(out, "whole"))
    folder = tmp_path / out / "gpt-sgd-sai-0"
    ranks = start_as_torchrun(2, compare, tmp_path, longer, killed_at)
    metrics = folder / METRICS
    while not (metrics.exists() and f'"step": {killed_at},' in metrics.read_text()):
        assert all(rank.is_alive() for rank in ranks)
        time.sleep(0.02)
    for rank in ranks:
        rank.kill()
    ended(ranks)
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    by_ranks(2, tmp_path, f"{longer} --resume")
    resumed, whole = saved(folder), saved(tmp_path / "whole" / "gpt-sgd-sai-0")
    assert resumed["step"] == whole["step"] == 40
    assert all(torch.equal(resumed["model"][name], whole["model"][name]) for name in whole["model"])
