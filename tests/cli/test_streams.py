"""What is printed never ends a command: without a reader, on a full disk, closed, in ASCII."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the lab extra is not installed")

from sgd_sai.cli import streams
from sgd_sai.lab.records import Record

SRC = Path(__file__).parents[2] / "src"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}
#: Python keeps what was not written, and tries again when it ends.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
RUNS = "cnn-sgd-0", "cnn-sgd-sai-0", "cnn-adamw-0"


def shell(line, *arguments, environment=(), folder=None):
    """The line in bash, where `sgd-sai` is the command line; the status is its own, not that of `| head`."""
    program = f'sgd-sai() {{ "{sys.executable}" -m sgd_sai.cli "$@"; }}; {line}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", program, "bash", *arguments],
        capture_output=True,
        env={**BUFFERED, "PYTHONPATH": str(SRC), **dict(environment)},
        cwd=folder,
    )


COMPARE = "sgd-sai compare --task cnn --optimizer sgd,sgd-sai,adamw --steps 2 --threads 1 --out out"


@pytest.mark.parametrize(
    ("rest", "environment", "code", "said"),
    [
        ("| head -1", {}, 0, None),
        ("2>&1 | head -1", {}, 0, None),
        (">&- 2>&-", {}, 0, None),
        (">/dev/full", {}, 1, "sgd-sai: cannot write the output: No space left on device"),
        ("", ASCII, 0, None),
        ("--jobs 2", LATIN, 0, None),
    ],
)
def test_all_runs_end_and_the_report_is_there(rest, environment, code, said, tmp_path):
    ended = shell(f"{COMPARE} {rest}", environment=environment, folder=tmp_path)
    errors = ended.stderr.decode()
    assert ended.returncode == code, errors
    out = tmp_path / "out"
    assert [Record.read(out / run).status for run in RUNS] == ["finished"] * 3
    assert {path.name for path in out.iterdir()} >= {"report.html", "report-final.png", "report-gsnr.png"}
    assert "κ" in (out / "report.html").read_text("utf-8")
    assert [line for line in errors.splitlines() if line.startswith("sgd-sai")] == ([said] if said else [])
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


@pytest.mark.parametrize("words", ["--help", "memory gpt2 --json"])
def test_output_that_is_lost_is_an_error_but_a_reader_may_go(words):
    assert shell(f"sgd-sai {words} >/dev/full").returncode == 1
    for rest in ("| true", ">&-", "2>&1 | head -c 1"):
        ended = shell(f"sgd-sai {words} {rest}")
        assert (ended.returncode, ended.stderr) == (0, b"")


def test_an_error_on_a_closed_stream_keeps_its_code():
    assert shell("sgd-sai compare --seeds -1 2>&-").returncode == 2


def test_nothing_that_is_opened_takes_the_place_of_a_closed_stream(tmp_path):
    """Else what is printed goes into a file that was opened first."""
    program = (
        "from sgd_sai.cli import streams\nimport os\n"
        "with streams.patient():\n"
        "    file = open('file', 'w'); print('printed', flush=True); os.write(1, b'!')\n"
    )
    given = ["bash", "-c", f'"{sys.executable}" -c "$1" <&- >&- 2>&-', "bash", program]
    subprocess.run(given, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SRC)})
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("environment", [ASCII, LATIN], ids=["ascii", "latin-1"])
def test_json_is_whole_in_any_encoding(environment, tmp_path):
    """A name that cannot be encoded has the code that JSON knows for it."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def f():\n    return nn.Linear(3, 3)\n"
        "def g():\n    m = nn.Module(); m.register_module('σ\\x1b\\U0001f600', nn.Linear(3, 3)); return m\n",
        "utf-8",
    )
    for factory in ("f", "g"):
        given = f"sgd-sai memory own:{factory} --optimizer sgd --json"
        ended = shell(given, environment=environment, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["plans"]


def test_a_path_that_is_no_text(tmp_path):
    """In bytes of another encoding: that of data is recorded and shown; TensorBoard could not write there."""
    data = os.fsdecode(b"\xff\x1b[2J")
    (tmp_path / data).write_text("one line of text\n" * 200, "utf-8")
    line = 'sgd-sai compare --task gpt --optimizer sgd --lr 0.1 --steps 2 --threads 1 --data "$1" --out "$2"'
    ended = shell(line, data, "out", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert Record.read(tmp_path / "out" / "gpt-sgd-0").config.data == data
    assert "\ufffd\ufffd[2J" in (tmp_path / "out" / "report.html").read_text("utf-8")
    before = sorted(tmp_path.iterdir())
    ended = shell(line, data, data, folder=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"sgd-sai: --out: given ")
    assert b"\x1b" not in ended.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_it_leaves_the_streams_as_they_were(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), streams.patient():
        raise KeyError
    assert (sys.stdout, sys.stderr) == before
