"""`sgd-sai gsnr` and `sgd-sai lr-find` on models of one's own, and on bad input."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sgd_sai import SGDSaI, console
from sgd_sai.cli import main
from sgd_sai.tools.lr_find.range_test import RangeTest
from sgd_sai.tools.workload import load_workload

pytest.importorskip("plotly")
pytest.importorskip("sklearn")
OWN = Path(__file__).parent


@pytest.fixture(autouse=True)
def in_the_folder_of_the_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(OWN)
    monkeypatch.syspath_prepend(str(OWN))


def record(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(capsys.readouterr().out, parse_constant=refuse)


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
    recorded = json.loads((OWN.parents[1] / "benchmarks" / "results" / "lr-transfer.json").read_text("utf-8"))
    of_tasks = {row["task"]: row for row in recorded["tasks"]}
    for row in found["tasks"]:
        numbers = {key: value for key, value in row.items() if isinstance(value, float)}
        assert numbers == pytest.approx({key: of_tasks[row["task"]][key] for key in numbers}, rel=0.02)


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


BAD = {
    "workloads:sparse": "parameter '0.weight': its gradient is sparse (torch.sparse_coo); allowed: dense",
    "workloads:fails": "workloads:fails failed: FileNotFoundError: no such file",
    "workloads:nothing": "workloads:nothing: is a int; allowed: a callable without arguments",
    "workloads:missing": "importing workloads:missing failed: AttributeError",
    "no_such_module:f": "importing no_such_module:f failed: ModuleNotFoundError",
    "resnet": "workload: given 'resnet'; allowed: gpt, vit, cnn",
    "workloads:not_a_pair": "returned a Sequential; allowed: (model, batches)",
    "workloads:vector_loss": "loss: it is a torch.float32 tensor of shape (16, 2); allowed: a tensor of one",
    "workloads:python_loss": "loss: it is a float; allowed",
    "workloads:no_loss": "output has no loss: put labels in the batch",
    "workloads:no_gradients": "gradients: after backward, no parameter of the model has one",
    "workloads:detached": "loss: it depends on no parameter",
    "workloads:zero_gradients": "none of the model's 6 trainable parameters has a finite, non-zero one",
    "workloads:frozen": "its model has no parameter that requires a gradient",
    "workloads:wrong_shape": "the forward pass failed: RuntimeError: mat1 and mat2",
    "workloads:no_batches": "its batches ended after 0",
}


@pytest.mark.parametrize("command", ["gsnr", "lr-find"])
@pytest.mark.parametrize("workload", BAD)
def test_a_bad_workload_gets_one_line(
    command: str, workload: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, [command, workload], BAD[workload])


@pytest.mark.parametrize(("arguments", "message"), [
    (["gsnr"], "required: WORKLOAD"),
    (["gsnr", "workloads:plain", "--lr", "-1"], "--lr: given '-1'; allowed: a finite number > 0"),
    (["gsnr", "workloads:plain", "--steps", "0"], "--steps: given '0'; allowed: an integer ≥ 1"),
    (["gsnr", "workloads:plain", "--html", "no/such/folder/x.html"], "--html: given no/such/folder/x.html"),
    (["gsnr", "workloads:plain", "--html", "."], "--html: given .; allowed: a file in a folder"),
    (["gsnr", "workloads:ends", "--steps", "5"], "ended after 2; give a list or a DataLoader, or fewer"),
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


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(OWN)
        patched.syspath_prepend(str(OWN))
        for name, steps in (("flagged", "3"), ("plain", "3"), ("named", "1")):
            main(["gsnr", f"workloads:{name}", "--steps", steps, "--html", str(folder / f"{name}.html")])
        main(["lr-find", "workloads:plain", "--steps", "20", "--html", str(folder / "lr.html")])
    return [folder / f"{name}.html" for name in ("flagged", "plain", "named", "lr")]


def test_pages_draw_without_errors_and_fit_a_phone(pages: list[Path], browser: Any) -> None:
    for path, charts in zip(pages, (3 + 4, 3 + 4, 3 + 4, 1), strict=True):
        page = browser.new_page(viewport={"width": 390, "height": 800})
        troubles: list[str] = []
        page.on("console", lambda message, to=troubles: to.append(message.text))
        page.on("pageerror", lambda error, to=troubles: to.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector(".js-plotly-plot")
        drawn = page.locator(".js-plotly-plot .main-svg .scatterlayer").count()
        assert drawn == charts - (0 if importlib.util.find_spec("adam_mini") or charts == 1 else 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".js-plotly-plot .scatterlayer .point, .scatterlayer .js-line").count() > 0
        assert not troubles
        page.close()
