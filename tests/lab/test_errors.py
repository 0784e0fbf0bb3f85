"""Bad input of the lab's commands: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from lab_commands import compare

from sgd_sai.cli import CommandError, main
from sgd_sai.lab.faults import DamagedRun
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.runs.runner import load


def rejected(arguments, capsys):
    """The one line that is printed."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--task", "bert"], ["--task", "'bert'", "gpt, vit, cnn"]),
        (["--optimizer", "adamx"], ["--optimizer", "'adamx'", "sgd-sai, adamw, sgd"]),
        (["--seeds", "0,x"], ["--seeds", "'x'", "integer"]),
        (["--seeds", "-1"], ["--seeds", "'-1'"]),
        (["--seeds", "99,100"], ["--seeds", "'99,100'", "sgd-sai tune"]),
        (["--jobs", "0"], ["--jobs", "'0'"]),
        (["--steps", "0"], ["--steps", "'0'"]),
        (["--threads", "two"], ["--threads", "'two'"]),
        (["--lr", "nan", "--optimizer", "sgd"], ["--lr", "'nan'"]),
        (["--lr", "0", "--optimizer", "sgd"], ["--lr", "'0'"]),
        (["--lr", "0.1"], ["--lr", "3 optimizers"]),
        (["--task", "gpt", "--data", "no/such/place"], ["--data", "no/such/place", "does not exist"]),
        (["--task", "vit", "--data", "."], ["--data", "one folder per class"]),
        (["--tuned", "missing.json"], ["no learning rate is tuned", "--lr", "sgd-sai tune"]),
        (["--seeds", str(2**70)], ["--seeds", "from 0 to 2147483647"]),
        (["--steps", "9" * 50], ["--steps", "from 1 to 2147483647"]),
        (["--threads", str(10**11)], ["--threads", "from 1 to 1024"]),
        (["--jobs", "100000"], ["--jobs", "from 1 to 1024"]),
        (["--lr", "1e-320", "--optimizer", "sgd"], ["--lr", "from 1e-30 to 1e30"]),
        (["--out", "x" * 300], ["--out", "too long"]),
        (["--task", "gpt", "--data", "x" * 300], ["--data", "too long"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_compare(arguments, names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = rejected(["compare", "--out", "out", *arguments], capsys)
    assert [name for name in names if name not in message] == []
    assert os.listdir() == []


@pytest.mark.parametrize("content", [None, b"", b"too short", b"\xff\xfe" * 4000])
def test_text_that_cannot_be_learned(content, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir() if content is None else data.write_bytes(content)
    message = rejected(["compare", "--task", "gpt", "--data", str(data), "--out", str(out)], capsys)
    assert str(data) in message
    assert "0 bytes" in message or "to hold out" in message
    assert not out.exists()


def test_the_command_line_as_a_module():
    given = [sys.executable, "-m", "sgd_sai.cli", "compare", "--seeds", "-1"]
    ended = subprocess.run(given, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "sgd-sai: --seeds: given '-1'; allowed: an integer ≥ 0\n"


def test_an_extra_that_is_not_installed():
    program = (
        "import sys; sys.modules['transformers'] = None; "
        "from sgd_sai.cli import main; sys.exit(main(['compare']))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "sgd-sai: compare needs the package 'transformers': pip install 'sgd-sai[lab]'\n"


def test_a_folder_that_cannot_be_written_to(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "is a file" in rejected(compare(tmp_path / "file"), capsys)
    assert "cannot write" in rejected(compare(tmp_path / "file" / "out"), capsys)
    assert (tmp_path / "file").read_bytes() == b""


def test_a_folder_that_holds_other_runs(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(compare(out, steps=2)) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "--resume" in rejected(compare(out, steps=2), capsys)
    assert "steps 2, not 3" in rejected(compare(out, "--resume", steps=3), capsys)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_resuming_needs_a_folder(capsys):
    assert "--out" in rejected(["compare", "--resume"], capsys)


def test_a_broken_file_of_learning_rates(tmp_path, capsys):
    path = tmp_path / "tuned.jsonl"
    for content in ("{", "[1]", '{"cnn": {"sgd-sai": {"lr": -1}}}'):
        path.write_text(content)
        assert str(path) in rejected(compare(tmp_path / "out", "--tuned", str(path), lr=None), capsys)
        assert str(path) in rejected(["tune", "--tuned", str(path), "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_tune(tmp_path, capsys):
    given = ["tune", "--out", str(tmp_path / "out")]
    assert "'bert'" in rejected([*given, "--task", "bert"], capsys)
    assert "does not exist" in rejected([*given, "--tuned", str(tmp_path / "no" / "tuned.jsonl")], capsys)
    assert list(tmp_path.iterdir()) == []


def test_report(tmp_path, capsys):
    page = str(tmp_path / "report.html")
    assert "holds no run" in rejected(["report", str(tmp_path), "--out", page], capsys)
    assert "holds no run" in rejected(["report", str(tmp_path / "missing"), "--out", page], capsys)
    assert "--out" in rejected(
        ["report", str(tmp_path), "--out", str(tmp_path / "no" / "report.html")], capsys
    )
    (tmp_path / "run.json").write_text("{}")
    assert "run.json" in rejected(["report", str(tmp_path), "--out", page], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_resuming_on_other_data(tmp_path, capsys):
    data, out = tmp_path / "text.txt", tmp_path / "out"
    data.write_text("one line of text\n" * 200)
    given = ["compare", "--task", "gpt", "--optimizer", "sgd", "--lr", "0.1", "--steps", "2"]
    given += ["--threads", "1", "--data", str(data), "--out", str(out), "--resume"]
    assert main(given) == 0
    load.cache_clear()  # as a new process would
    data.write_text("another line of text\n" * 200)
    capsys.readouterr()
    assert "sha256" in rejected(given, capsys)


@pytest.mark.parametrize("command", ["tune", "sweep"])
def test_several_ranks_are_refused_before_they_write(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "out"
    assert main([command, "--task", "cnn", "--optimizer", "sgd", "--steps", "2", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("sgd-sai: WORLD_SIZE: given 2")
    assert message.count("\n") == 1
    assert not out.exists()


def test_ranks_share_each_run(capsys, monkeypatch):
    assert "--fsdp: given without ranks" in rejected(["compare", "--fsdp"], capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = ["compare", "--fsdp", "--optimizer", "sgd-sai-8bit,muon"]
    assert "--fsdp: given for muon, which takes whole parameters" in rejected(given, capsys)
    assert "--jobs: given 2 with WORLD_SIZE 2; allowed: 1" in rejected(["compare", "--jobs", "2"], capsys)


@pytest.mark.parametrize("file", ["checkpoint.pt", "gsnr.json", "metrics.jsonl", "run.json"])
@pytest.mark.parametrize("how", ["cut", "empty"])
def test_a_damaged_run_is_named(file, how, tmp_path, capsys):
    """What was cut off by a full disk, say: one line, and nothing of the run changes."""
    out = tmp_path / "out"
    assert main(compare(out, steps=2)) == 0
    (run,) = (path.parent for path in out.glob("*/run.json"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running", "result": None}))
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2] if how == "cut" else b"")
    before = {
        path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != "run.json"
    }
    capsys.readouterr()
    assert main(compare(out, "--resume", steps=2)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sgd-sai: {run / file}: ")
    assert before == {name: (run / name).read_bytes() for name in before}


def test_a_damaged_run_is_no_error_of_the_command_line(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DamagedRun, match=r"run\.json: not the record of a run") as caught:
        read_runs([tmp_path])
    assert not isinstance(caught.value, CommandError)


def test_half_a_line_of_a_run_that_was_killed(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(compare(out, steps=5)) == 0
    (metrics,) = out.glob("*/metrics.jsonl")
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + b'{"step": 6, "sec')
    (run,) = read_runs([out])
    assert run.evaluations[-1]["step"] == 5
    assert main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0


def test_what_a_record_says_steers_no_terminal(tmp_path, capsys):
    """Its words stand in the line that refuses it."""
    out = tmp_path / "out"
    assert main(compare(out, steps=2)) == 0
    (path,) = out.glob("*/run.json")
    record = json.loads(path.read_text("utf-8"))
    record["config"]["task"] = record["config"]["\x1b[2J\x9b31m"] = "\x1b]0;title\x07"
    path.write_text(json.dumps(record), "utf-8")
    capsys.readouterr()
    for given in (
        ["report", str(out), "--out", str(tmp_path / "page.html")],
        compare(out, "--resume", steps=2),
    ):
        line = rejected(given, capsys)
        assert str(path) in line
        assert {*"\x1b\x07\x9b"} & {*line} == set()


@pytest.mark.parametrize(
    "command",
    [
        "report {}",
        "report . --out {}",
        "report . --pack {}",
        "compare --tuned {}",
        "tune --tuned {}",
        "memory {}",
        "gsnr cnn --html {}",
        "compare --out {}",
        "compare --task gpt --data {}",
    ],
)
def test_a_name_that_is_too_long(command, capsys):
    name = "x" * 300
    line = rejected(command.format(name).split(), capsys)
    assert name in line
    assert "File name too long" in line


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    """What stands in the way of a file is named; nothing is read from it."""
    pipe, study = tmp_path / "pipe", tmp_path / "study"
    study.mkdir()
    os.mkfifo(pipe)
    os.mkfifo(study / "runs.jsonl")
    for given in (["compare", "--tuned", str(pipe)], ["memory", str(pipe)]):
        assert f"{pipe}: " in rejected(given, capsys)
    assert "runs.jsonl: not the records of runs (it is no file)" in rejected(["report", str(study)], capsys)
    assert "/dev/zero: not a file of" in rejected(["compare", "--tuned", "/dev/zero"], capsys)


def test_ranks_that_cannot_meet(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert "WORLD_SIZE: given 'two'; allowed: a number" in rejected(["compare", "--task", "cnn"], capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert "WORLD_SIZE: given 2 without RANK" in rejected(["compare", "--task", "cnn"], capsys)
