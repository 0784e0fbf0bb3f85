"""Tables as JSON Lines: what is read is what was written, with shared values once, whoever wrote it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lab_commands import PATIENCE

from sgd_sai.lab import table

MACHINE = {"processor": "AMD EPYC", "cores": 2}
ROWS = [
    {"task": "cnn", "machine": MACHINE, "lr": 0.1, "tuning": None},
    {"task": "vit\u2028g", "machine": {**MACHINE, "cores": 3}, "lr": 1e-05, "tuning": {"grid": [1, 2.0]}},
    {"task": "λ", "machine": dict(MACHINE), "lr": 1, "tuning": {"grid": [1, 2.0]}},
]


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    table.write(path, ROWS, ("machine", "tuning"))
    assert table.read(path) == ROWS
    assert path.read_text("utf-8").count("AMD EPYC") == 2  # two machines, three rows
    assert path.read_text("utf-8").count("\n") == 6
    table.write(path, ROWS)
    assert table.read(path) == ROWS
    table.write(path, [])
    assert table.read(path) == []


def test_nan_is_refused_and_nothing_is_lost(tmp_path):
    path = tmp_path / "rows.jsonl"
    table.write(path, ROWS)
    with pytest.raises(ValueError, match="JSON"):
        table.write(path, [{"loss": float("nan")}])
    assert table.read(path) == ROWS


def test_rows_are_appended_with_what_is_shared_already(tmp_path):
    """As if they were written at once; half a line of a process that was killed is cut."""
    path = tmp_path / "rows.jsonl"
    for row in ROWS:
        table.append(path, row, ("machine", "tuning"))
        with path.open("a") as file:
            file.write('{"task": "cn')
    table.append(path, ROWS[0], ("machine",))
    assert table.read(path) == [*ROWS, ROWS[0]]
    assert path.read_text("utf-8").count("AMD EPYC") == 2


def test_processes_append_side_by_side(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = """
import sys
from pathlib import Path
from sgd_sai.lab import table
for number in range(50):
    table.append(Path(sys.argv[1]), {"by": {"name": sys.argv[2]}, "number": number}, ("by",))
"""
    running = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "ab"]
    assert [process.wait(PATIENCE) for process in running] == [0, 0]
    rows = table.read(path)
    for name in "ab":
        assert [row["number"] for row in rows if row["by"] == {"name": name}] == [*range(50)]


@pytest.mark.parametrize(
    "damage",
    ["{", "[1]", "3", '{"shared":"machine"}', '{"task":"cnn","machine":7}', '{"task":"cnn","machine":[]}'],
)
def test_a_damaged_line_is_named(damage, tmp_path):
    path = tmp_path / "rows.jsonl"
    table.write(path, ROWS, ("machine",))
    path.write_text(path.read_text() + damage)
    with pytest.raises(ValueError, match="line 6: "):
        table.read(path)


def test_rows_and_columns():
    rows = [{"lr": 0.1, "loss": 2.0}, {"lr": 1.0}, {"lr": 10, "loss": 0}]
    assert table.columns(rows) == {"lr": [0.1, 1.0, 10], "loss": [2.0, None, 0]}
    assert table.rows(table.columns(rows)) == rows
    assert table.rows(table.columns([])) == []
    with pytest.raises(ValueError, match="shorter"):
        table.rows({"lr": [0.1, 1.0], "loss": [2.0]})
