"""`sgd-sai gsnr` on a task and on models of one's own, against the optimizers themselves."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tool_commands import record, refused

from sgd_sai import SGDSaI
from sgd_sai.cli import console, main
from sgd_sai.diagnostics import measure_blocks
from sgd_sai.tools.workload import Workload, load_workload


@pytest.mark.parametrize("workload", ["workloads:plain", "workloads:gpt", "vit"])
def test_gsnr_shows_what_the_optimizers_do(workload: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scales and both updates, against a step of SGDSaI and of AdamW from the same start."""
    found = record(capsys, "gsnr", workload, "--lr", "0.003", "--seed", "1")
    moved = {}
    for name, optimizer in (
        ("sgd_sai_update", lambda params: SGDSaI(params, lr=found["lr"]["normalize=True"])),
        ("adamw_update", lambda params: torch.optim.AdamW(params, lr=0.003, weight_decay=0.0)),
    ):
        own = load_workload(workload, seed=1)
        own.model.double()  # so that θ − θ' is not rounding
        gradients = load_workload(workload, seed=1)
        gradients.backward(0)
        for p, q in zip(own.model.parameters(), gradients.model.parameters(), strict=True):
            p.grad = q.grad.double()
        before = {n: p.detach().clone() for n, p in own.named}
        stepped = optimizer(own.named)
        stepped.step()
        moved[name] = {n: (p.detach() - before[n]).square().mean().sqrt().item() for n, p in own.named}
    assert [row["name"] for row in found["blocks"]] == [name for name, _ in own.named]
    for row in found["blocks"]:
        assert row["sgd_sai_update"] == pytest.approx(moved["sgd_sai_update"][row["name"]], rel=1e-6)
        assert row["adamw_update"] == pytest.approx(moved["adamw_update"][row["name"]], rel=1e-6)
        assert row["scale"] == pytest.approx(row["gsnr"] / found["gsnr_max"])
    total = {
        name: math.fsum(row["d"] * row[name] ** 2 for row in found["blocks"])
        for name in ("sgd_sai_update", "adamw_update")
    }
    assert total["sgd_sai_update"] == pytest.approx(total["adamw_update"])


def test_gsnr_prints_every_block_and_flags_what_is_special(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gsnr", "workloads:flagged"]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert "dominates the max" in lines["large"]
    assert "σ = 0" in lines["scalar"]
    assert "unlatched (zero gradient)" in lines["a"]
    assert "unlatched (zero gradient)" in lines["unused"]
    assert "unlatched (NaN or Inf)" in lines["broken"]
    assert not any(flag in lines["vector"] for flag in ("unlatched", "σ = 0", "dominates"))
    assert "Flagged as unlatched (zero gradient): a, unused." in printed


def test_gsnr_over_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Gains are what they are by definition: of SGD one number in the first step, of SGD-SaI lr · scale."""
    found = record(capsys, "gsnr", "workloads:plain", "--steps", "5")
    training = found["training"]
    assert set(training) >= {"SGD", "SGD-SaI", "Adam"}
    assert ("Adam-mini" in training) == bool(importlib.util.find_spec("adam_mini"))
    for trace in training.values():
        assert trace["steps"] == [1, 2, 3, 4, 5]
        assert trace["losses"][0] == training["SGD"]["losses"][0]  # the same start, the same batches
        assert len(set(trace["losses"])) == 5
    first = {name: {b: g[0] for b, g in trace["gains"].items()} for name, trace in training.items()}
    assert max(first["SGD"].values()) == pytest.approx(min(first["SGD"].values()), rel=1e-3)
    for row in found["blocks"]:
        assert training["SGD-SaI"]["gsnr"][row["name"]][0] == pytest.approx(row["gsnr"])
        # Here lr is normalised to AdamW's: the gain is lr · G_snr / gsnr_rms.
        expected = found["adamw_lr"] * row["gsnr"] / found["gsnr_rms"]
        assert first["SGD-SaI"][row["name"]] == pytest.approx(expected, rel=1e-3)
        assert first["Adam"][row["name"]] == pytest.approx(
            row["adamw_update"] / row["norm"] * math.sqrt(row["d"]), rel=1e-3
        )


def test_the_recorders_cost_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, "gsnr", "workloads:plain", "--cost")
    assert found["share"] == pytest.approx(found["record_s"] / (found["every"] * found["step_s"]))
    assert found["record_s"] > 0 < found["step_s"]
    assert main(["gsnr", "workloads:plain", "--cost"]) == 0
    assert "of the step time" in capsys.readouterr().out


def test_names_are_no_markup_and_numbers_are_never_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = Console(width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console, "terminal", lambda: narrow)
    assert main(["gsnr", "workloads:named"]) == 0
    printed = capsys.readouterr().out
    assert "w[red]" in printed
    assert "…" not in printed
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_updates_too_small_for_a_gain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["gsnr", "workloads:scalar", "--lr", "1e-30", "--steps", "2", "--html", str(page)]) == 0
    assert "no block moved at the first step" in capsys.readouterr().out
    assert page.exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["gsnr"], "required: WORKLOAD"),
    (["gsnr", "workloads:plain", "--lr", "-1"], "--lr: given '-1'; allowed: a finite number > 0"),
    (["gsnr", "workloads:plain", "--steps", "0"], "--steps: given '0'; allowed: an integer ≥ 1"),
    (["gsnr", "workloads:plain", "--html", "no/such/folder/x.html"], "--html: given no/such/folder/x.html"),
    (["gsnr", "workloads:plain", "--html", "."], "--html: given .; allowed: a file in a folder"),
    (["gsnr", "workloads:ends", "--steps", "5"], "ended after 2; give a list or a DataLoader, or fewer"),
])  # fmt: skip
def test_bad_options_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, arguments, message)


@pytest.mark.parametrize("task", ["gpt", "vit", "cnn"])
def test_the_first_gradient_of_a_task_does_not_look_scaled(
    task: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Only by their size can `measure_blocks` tell gradients that a GradScaler has scaled."""
    workload = load_workload(task, seed=0)
    workload.clip = None
    workload.backward(0)
    measure_blocks(workload.named)
    assert not [warning for warning in recwarn.list if "GradScaler" in str(warning.message)]
    for _, param in workload.named:
        if param.grad is not None:
            param.grad *= 2.0**16
    with pytest.warns(UserWarning, match="a GradScaler has scaled"):
        measure_blocks(workload.named)


def test_a_workload_with_a_large_gradient_is_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    """The command computes the gradient itself, and scales nothing."""
    model = torch.nn.Linear(4, 2)
    workload = Workload("sum", model, lambda step: torch.ones(1, 4), lambda net, x: 1e4 * net(x).sum())
    workload.backward(0)
    assert workload.measure().normalizers["gsnr_rms"] > 1e3
    assert not recwarn.list
