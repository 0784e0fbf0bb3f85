"""`sgd-sai lr-find`: where the loss falls and breaks, and the transfer of tuned rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tool_commands import record, refused

from sgd_sai.cli import main
from sgd_sai.tools.lr_find.range_test import RangeTest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("workload", ["workloads:plain", "workloads:gpt"])
@pytest.mark.parametrize("optimizer", ["sgd-sai", "adamw", "sgd"])
def test_lr_find_sees_the_loss_fall_and_break(
    workload: str, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = record(capsys, "lr-find", workload, "--optimizer", optimizer, "--to", "1e6", "--steps", "60")
    assert found["broke"] or optimizer == "adamw"
    assert found["lrs"] == sorted(found["lrs"])
    assert found["lrs"][0] == pytest.approx(1e-6 * found["adamw_ratio"])
    assert found["steepest"] <= found["lowest"] < found["lrs"][-1]
    assert min(found["smoothed"]) < found["smoothed"][0]


def test_lr_find_prints_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lr-find", "workloads:plain", "--steps", "20"]) == 0
    printed = capsys.readouterr().out
    assert "█" in printed
    assert "falls fastest at lr" in printed


def test_lr_find_transfers_the_tuned_rates(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, "lr-find", "gpt,vit,cnn", "--tuned")
    for row in found["tasks"]:
        assert row["ratio"] == pytest.approx(row["sgd_sai"] / row["transferred"])
        assert row["transferred"] > row["adamw"] > 0
    assert main(["lr-find", "cnn", "--tuned"]) == 0
    printed = capsys.readouterr().out
    assert "tuned / transferred" in printed

    # docs/learning-rate.md shows this record.
    recorded = json.loads((ROOT / "benchmarks" / "results" / "lr-transfer.json").read_text("utf-8"))
    of_tasks = {row["task"]: row for row in recorded["tasks"]}
    for row in found["tasks"]:
        numbers = {key: value for key, value in row.items() if isinstance(value, float)}
        assert numbers == pytest.approx({key: of_tasks[row["task"]][key] for key in numbers}, rel=0.02)


def test_noise_is_no_slope() -> None:
    """Losses that only scatter fall nowhere; where they fall later, the first steps do not count."""
    generator = torch.Generator().manual_seed(0)
    noise = (0.1 * torch.randn(60, generator=generator)).tolist()
    flat, falling = RangeTest(), RangeTest()
    for step, scatter in enumerate(noise):
        for test, loss in ((flat, 2.0 + scatter), (falling, 2.0 + scatter - max(0, step - 30) / 20)):
            test.lrs.append(10.0 ** (step / 10))
            test.losses.append(loss)
            before = test.smoothed[-1] if test.smoothed else loss
            test.smoothed.append(0.9 * before + 0.1 * loss)
    assert flat.steepest is None
    assert falling.steepest is not None
    assert falling.steepest > 10.0**3


def test_the_fall_is_found_after_noise_that_is_steeper() -> None:
    found = RangeTest()
    noise = [1.0, 1.1, 1.2, 1.1] * 5  # falls by more a step than the fall does
    for step, smoothed in enumerate([*noise, *(1.0 - 0.02 * k for k in range(40))]):
        found.lrs.append(10.0 ** (step / 10))
        found.losses.append(1.0 + 0.5 * (step % 2))
        found.smoothed.append(smoothed)
    assert found.steepest is not None
    assert found.steepest >= found.lrs[len(noise)]


@pytest.mark.parametrize(("arguments", "message"), [
    (["lr-find"], "WORKLOAD is missing"),
    (["lr-find", "workloads:plain", "--tuned"], "WORKLOAD: given 'workloads:plain'; allowed: gpt"),
    (["lr-find", "workloads:plain", "--optimizer", "all"], "--optimizer: given 'all'"),
    (["lr-find", "workloads:plain", "--from", "1", "--to", "0.1"], "--from: given 1; allowed: less than"),
    (["lr-find", "workloads:plain", "--steps", "1"], "--steps: given '1'; allowed: an integer ≥ 2"),
])  # fmt: skip
def test_bad_options_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, arguments, message)
