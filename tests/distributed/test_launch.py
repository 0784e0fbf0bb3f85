"""The lines of docs/distributed.md that start training, each run, against one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import LR, STEPS
from tiny import LATE, Tiny, batch, loss_of

from sgd_sai import SGDSaI

ROOT = Path(__file__).parents[2]
LINES = re.findall(r"^torchrun .*$", (ROOT / "docs" / "distributed.md").read_text("utf-8"), re.MULTILINE)


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


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[4])
def test_line(line: str, tmp_path: Path, truth: dict[str, torch.Tensor]) -> None:
    arguments = line.replace("tests/", f"{ROOT}/tests/").split()[1:]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments],
        cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = torch.load(tmp_path / "weights.pt")
    for name, p in truth.items():
        assert (found[name] - p).norm() <= 1e-5 * p.norm(), name
