"""A run of the lab on two ranks is that of one process, also where their shares of a batch are not alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from world import world

from run_files import files_of, set_status

pytest.importorskip("transformers", reason="the lab extra is not installed")

from transformers.modeling_outputs import TokenClassifierOutput

from sgd_sai.lab.faults import UnusableRun
from sgd_sai.lab.records import CHECKPOINT, METRICS, RunConfig
from sgd_sai.lab.runs import processes, runner
from sgd_sai.lab.tasks import ALL, Problem
from sgd_sai.lab.tasks.problem import IGNORED, Batch

CONFIG = RunConfig("uneven", "sgd-sai", seed=0, steps=4, lr=0.5, data=None, threads=1)


class Classifier(nn.Module):
    """What the lab calls a model: it returns logits as transformers does, in which FSDP2 finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Any:
        return TokenClassifierOutput(logits=self.linear(x))


def batch(seed: int, step: int) -> Batch:
    """Three samples of four positions: two of them for rank 0, and in step 2 nothing to judge for rank 1."""
    generator = torch.Generator().manual_seed(step)
    classes = torch.randint(5, (3, 4), generator=generator)
    classes[0, 1:] = IGNORED
    classes[2, : 4 if step == 2 else 1] = IGNORED
    return torch.randn(3, 4, 3, generator=generator), classes


def uneven(path: Path | None) -> Problem:
    return Problem(model=Classifier, batch=batch, validation=[batch(0, 99)], data="made up")


def train(folder: Path, config: RunConfig, accumulate: int) -> list[float]:
    """One run, in the folder of rank 0; the losses that this rank saw."""
    losses: list[float] = []
    task = replace(ALL["gpt"], name="uneven", load=uneven, accumulate=accumulate)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(ALL, "uneven", task)
        runner.train(config, folder, None, lambda step, loss, lr: losses.append(loss))
    return losses


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_uneven_shares(fsdp: bool, accumulate: int, tmp_path: Path) -> None:
    expected = train(tmp_path / "one", CONFIG, accumulate)
    found = world(2, train, tmp_path / "two", replace(CONFIG, ranks=2, fsdp=fsdp), accumulate)
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-6)
    assert processes.count() == 1
    one, two = (
        torch.load(tmp_path / which / CHECKPOINT, weights_only=True)["model"] for which in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def refused(folder: Path, config: RunConfig) -> str:
    """What a rank says where the run cannot be gone on with; then the ranks still meet."""
    with pytest.raises(UnusableRun) as caught:
        train(folder, config, 1)
    return str(caught.value)


def test_rank_0_tells_the_others_that_the_folder_holds_another_run(tmp_path: Path) -> None:
    """They see none: their folders are thrown away. Without a word they would wait for it."""
    train(tmp_path / "run", CONFIG, 1)
    left = files_of(tmp_path / "run")
    asked = replace(CONFIG, ranks=2, lr=0.1)
    one, other = world(2, refused, tmp_path / "run", asked)
    assert one == other
    assert "lr 0.5, not 0.1, ranks 1, not 2" in one
    assert files_of(tmp_path / "run") == left


@pytest.mark.parametrize("how", ["flipped", "empty model", "metrics"])
@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_a_damaged_run_is_refused_on_every_rank(fsdp: bool, how: str, tmp_path: Path) -> None:
    folder, config = tmp_path / "run", replace(CONFIG, ranks=2, fsdp=fsdp)
    world(2, train, folder, config, 1)
    set_status(folder, "interrupted")
    path = folder / (METRICS if how == "metrics" else CHECKPOINT)
    content = bytearray(path.read_bytes())
    if how == "empty model":
        torch.save({**torch.load(path, weights_only=True), "model": {}}, path)
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-5])
    left = files_of(folder)
    one, other = world(2, refused, folder, config)
    assert one == other
    assert one.startswith(f"{path}: not ")
    assert files_of(folder) == left
