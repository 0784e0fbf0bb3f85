"""`sgd-sai bench`: what is timed is there, what is not says why, and the record says where it was made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgd_sai.bench import timing
from sgd_sai.bench.command import LR, TIMED, bench, shapes_of
from sgd_sai.cli import main
from sgd_sai.peers import PEERS, release


def test_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    names = "sgd-sai,sgd-sai-8bit,sgd-fused"
    command = ["bench", "--model", "tiny", "--optimizer", names, "--rounds", "3", "--json", "--out", str(out)]
    assert main(command) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text())
    assert record["tensors"] == 1000
    assert list(record["rows"]) == names.split(",")
    assert all(row["ms"] > 0 and row["times_floor"] > 0 for row in record["rows"].values())
    assert record["rows"]["sgd-fused"]["times_sgd_fused"] == 1.0
    assert {"machine", "versions", "date", "command", "floor_ms", "threads"} <= record.keys()


def test_the_table_names_what_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "_FOLDER", "nowhere")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "--model", "tiny", "--optimizer", "sgd-sai,release", "--rounds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Release 1.0.3" in shown
    assert "release needs the authors' release" in shown


def test_every_optimizer_of_ours_and_of_torch_takes_a_step() -> None:
    ours = [name for name in TIMED if name.startswith(("sgd", "adamw-f", "muon"))]
    record = bench("tiny", ours, torch.float32, 1, torch.device("cpu"))
    assert list(record["rows"]) == ours


def test_a_peer_prints_nothing_of_its_own() -> None:
    """The release prints a banner at its first step, torchao logs warnings when it is imported."""
    names = [name for name in TIMED if PEERS[name].missing() is None and PEERS[name].by_default]
    words = ["--model", "tiny", "--optimizer", ",".join(names), "--rounds", "1", "--json"]
    command = [sys.executable, "-m", "sgd_sai.cli", "bench", *words]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ran.stderr == ""
    assert list(json.loads(ran.stdout)["rows"]) == names


def test_the_timed_steps_decay() -> None:
    """A factor 1 − λη that float32 rounds to 1 would save them a pass."""
    before, after = ([torch.nn.Parameter(torch.ones(10_000))] for _ in range(2))
    after[0].grad = torch.zeros(10_000)
    TIMED["sgd-sai"](after, lr=LR).step()
    assert (after[0] < before[0]).all()


def test_shapes_are_those_of_the_model() -> None:
    assert sum(shape.numel() for shape in shapes_of("gpt2")) == 124_439_808
    assert len(shapes_of("gpt2")) == 148


def test_the_order_of_a_round_rotates() -> None:
    calls: list[str] = []
    series = [timing.Series(n, lambda n=n: calls.append(n)) for n in "abc"]
    timing.interleave(series, 3, torch.device("cpu"), lambda: None)
    assert "".join(calls) == "abcbcacab"
    assert [len(one.ms) for one in series] == [3, 3, 3]


def test_ratio_is_taken_round_by_round() -> None:
    a, b = timing.Series("a", int, [2.0, 40.0, 6.0]), timing.Series("b", int, [1.0, 10.0, 3.0])
    assert timing.ratio(a, b) == 2.0
    assert timing.quartiles([1.0, 2.0, 3.0]) == (1.5, 2.0, 2.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adamx"], "--optimizer: unknown 'adamx'; there are sgd-sai,"),
        (["--dtype", "fp8"], "--dtype: given 'fp8'; allowed: fp32, bf16, fp16"),
        (["--rounds", "0"], "--rounds: given 0; allowed: 1 or more"),
        (["--model", "gpt9"], "gpt9"),
        (["--device", "cuda:99"], "--device: cuda:99"),
        (["--out", "/no/such/folder/x.json"], "--out: /no/such/folder is no folder"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
