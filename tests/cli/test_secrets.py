"""Passwords in addresses: neither shown nor stored, however wrong the address is."""

from __future__ import annotations

import json
import shlex

import pytest

pytest.importorskip("optuna", reason="the lab extra is not installed")

from sgd_sai.cli import main
from sgd_sai.cli.secrets import without_secrets
from sgd_sai.lab import provenance

SECRET = "hunter2"


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://user:{SECRET}@nowhere.invalid/db",
        f"nosuch://user:{SECRET}@host/db",
        f"mysql+nosuch://user:{SECRET}@host/db",
        f"redis://:{SECRET}@127.0.0.1:1/0",
        f"redis://127.0.0.1:1/0?password={SECRET}",
        f"sqlite:///no/such/folder/file?password={SECRET}",
        f"postgresql://user:{SECRET}",  # the host is missing: this reads as a port
        f"postgresql:/user:{SECRET}@host",
        f"postgresql:user:{SECRET}@host",
        f"postgresql://user:pass/{SECRET}@host:port/db",
        f"postgresql://user:a b{SECRET}@[host/db",
        f"postgresql://user:%20{SECRET}@host:x/db",
        f"postgresql://{SECRET}@host:x/db",
    ],
    ids=range(13),
)
def test_a_wrong_storage_is_named_without_its_password(address, tmp_path, capsys, monkeypatch):
    given = ["sweep", "--task", "cnn", "--optimizer", "sgd", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*given, "--storage", address]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("sgd-sai: --storage: cannot open ")
    assert printed.err.count("\n") == 1
    assert SECRET not in printed.err + printed.out
    assert main([*given, address]) == 2  # --storage is missing
    assert "@" not in address or SECRET not in capsys.readouterr().err or "://" not in address


@pytest.mark.parametrize("form", ["--storage {}", "--storage={}", "--stor={}"])
@pytest.mark.parametrize("address", ["redis://u:a hunter2@h/0", "mysql://u:hunter2@h/db?ssl_key=hunter2&x=1"])
def test_the_command_of_a_record_holds_no_password(form, address, monkeypatch):
    words = [each.format(address) for each in form.split()]
    monkeypatch.setattr("sys.argv", ["/bin/sgd-sai", "sweep", *words, "--jobs", "2"])
    command = provenance.command()
    assert SECRET not in command
    assert shlex.split(command)[0 :: len(shlex.split(command)) - 1] == ["sgd-sai", "2"]
    assert address.partition(":")[0] + "://***@h" in command


def test_an_address_without_secrets_stays():
    for text in ("sqlite:///runs/sweep.db", "redis://localhost:6379/0", "a@b", "runs/x?y", "no address"):
        assert without_secrets(text) == text


def test_a_run_of_a_sweep_records_none(tmp_path, monkeypatch):
    """With a storage that works: SQLite takes options."""
    url = f"sqlite:///{tmp_path / 's.db'}?timeout={SECRET[-1]}&_secret={SECRET}"
    given = [
        "sweep",
        "--task",
        "cnn",
        "--optimizer",
        "sgd",
        "--steps",
        "1",
        "--lr",
        "0.1",
        "--weight-decay",
        "0",
    ]
    given += ["--threads", "1", "--out", str(tmp_path / "out"), "--storage", url]
    monkeypatch.setattr("sys.argv", ["sgd-sai", *given])
    assert main(given) == 0
    (record,) = (tmp_path / "out").glob("*/run.json")
    assert "?***" in json.loads(record.read_text("utf-8"))["command"]
    held = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path.name for path in held if SECRET.encode() in path.read_bytes()] == []
