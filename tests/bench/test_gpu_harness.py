"""`python -m benchmarks.gpu`: every line that runs on a GPU runs in a dry run, as far as a CPU can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import shapes

ROOT = Path(__file__).parents[2]


def dry_run(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; this pytest is not to be seen by the one that it starts."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env["PYTHONPATH"] = str(ROOT / "src")
    words = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(out), *options]
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_dry_run_of_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("triton", "transformers"):
        pytest.importorskip(module)
    ran = dry_run(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert len(ran.stdout.split("tests (")[-1]) < 10_000
    records = {file.stem: json.loads(file.read_text("utf-8")) for file in tmp_path.iterdir()}
    assert set(records) == set(gpu.LIMITS)
    for stage, record in records.items():
        assert record["complete"], stage
        assert record["dry_run"]
        assert {"command", "date", "machine", "versions", "seconds"} <= record.keys()
        assert not [row for row in record["rows"] if "error" in row]
    assert records["tests"]["counts"]["passed"] > 0
    ours = {(row["model"], row["dtype"]) for row in records["step"]["rows"] if "SGD-SaI" in row["name"]}
    assert len(ours) == 5
    assert len(records["first_step"]["rows"]) == 6
    assert [row["variant"] for row in records["llama"]["rows"]] == ["no momentum", "8-bit momentum"]
    assert all(row["losses"][-1] < row["losses"][0] for row in records["llama"]["rows"])
    # The bytes of a step: θ, g of 2 bytes; m of 1 and 4/256 in the matrix that is large enough.
    sizes = {row["name"]: row["bytes"] for row in records["step"]["rows"] if row.get("dtype") == "bfloat16"}
    elements = [torch.Size(shape).numel() for shape in shapes.TOY]
    assert sizes["SGD-SaI no m stochastic"] == 6 * sum(elements)
    kept = elements[0] + 4 * elements[0] // 256 + 4 * sum(elements[1:])
    assert sizes["SGD-SaI 8-bit m stochastic"] == 6 * sum(elements) + 2 * kept
    assert sizes["torch AdamW fused"] == 14 * sum(elements)
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--only", "step,llama"]) == 0
    assert capsys.readouterr().out.startswith("step: its record is there")


def test_a_stage_that_is_cut_off_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that measures one row, and then takes too long: its time is over once the row is there."""
    path = tmp_path / "llama.json"
    worker = (
        "import sys, time; from pathlib import Path; from benchmarks.gpu.worker import Record;"
        "print('why', file=sys.stderr, flush=True);"
        "Record('llama', Path(sys.argv[1]), dry=True).add({'name': 'one', 'absent': 'x'}); time.sleep(3600)"
    )

    class Worker(subprocess.Popen[str]):
        def __init__(self, words: list[str], **options: Any) -> None:
            super().__init__([sys.executable, "-c", worker, str(tmp_path)], **options)

        def wait(self, timeout: float | None = None) -> int:
            while not path.exists() and self.poll() is None:
                time.sleep(0.05)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Worker)
    monkeypatch.setitem(gpu.LIMITS, "llama", 0.5)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}")
    assert gpu.main(["--dry-run", "--only", "llama", "--out", str(tmp_path)]) == 1
    record = json.loads(path.read_text("utf-8"))
    assert not record["complete"]
    assert record["ended"].startswith("cut off")
    assert record["stderr"] == ["why"]
    assert [row["name"] for row in record["rows"]] == ["one"]
    assert "NOT COMPLETE" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "records")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "gpu: this machine has no GPU that torch can use; nothing was measured"
    ]
    assert not list(tmp_path.iterdir())
    assert gpu.main(["--only", "stage"]) == 2
    assert capsys.readouterr().err.startswith("gpu: --only: given 'stage'; allowed: tests, step")


def test_shapes_are_those_of_the_models() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig())
    assert shapes.MODELS["GPT-2 small"] == [tuple(param.shape) for param in gpt2.parameters()]
    assert shapes.MODELS["Llama-2-7B"] == [tuple(param.shape) for param in llama.parameters()]


@pytest.mark.parametrize(
    ("model", "parameters"), [("GPT-2 XL", 1_557_611_200), ("ViT-S", 22_050_664), ("ViT-H", 632_045_800)]
)
def test_shapes_have_the_published_number_of_parameters(model: str, parameters: int) -> None:
    assert sum(torch.Size(shape).numel() for shape in shapes.MODELS[model]) == parameters
