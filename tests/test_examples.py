"""Every example runs as its docstring says, and its loss falls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
RANKS = 2


def names() -> list[str]:
    return sorted(path.name for path in EXAMPLES.glob("*.py"))


def command(example: str) -> list[str]:
    launcher = []
    if "torchrun" in (EXAMPLES / example).read_text("utf-8").split('"""')[1]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    return [sys.executable, *launcher, str(EXAMPLES / example)]


@pytest.mark.parametrize("example", names())
def test_its_loss_falls(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        command(example),
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    match = re.search(r"loss (\d+\.\d+) -> (\d+\.\d+)$", last)
    assert match, f"the last line is {last!r}"
    first, last_loss = map(float, match.groups())
    assert last_loss < 0.85 * first
    assert "False" not in done.stdout  # "resumed, equal to the uninterrupted run: …"
    assert not list(tmp_path.iterdir()), "it left something behind"


@pytest.mark.parametrize("example", names())
def test_it_is_short(example: str) -> None:
    assert len((EXAMPLES / example).read_text("utf-8").splitlines()) < 80
