"""The one table of the commands: plain where no terminal is, else drawn, with numbers whole."""

from __future__ import annotations

import pytest
from rich.console import Console

from sgd_sai.cli import console

TABLE = ("A title", ("name", "value"), [["w[red]", "1,234"], ["a " * 30, "5"]])


def test_plain_text_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(
        "A title", ("name", "value"), [["w[red]", "1,234"], ["b", "5"]], words=("name",), note="!"
    )
    assert capsys.readouterr().out == "A title\nname    value\nw[red]  1,234\nb           5\n!\n"


def test_a_narrow_terminal_folds_words_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = Console(width=20, force_terminal=True, color_system=None)
    monkeypatch.setattr(console, "terminal", lambda: narrow)
    console.print_table(*TABLE, words=("name",), styles=["bold", ""])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 20
    assert "w[red]" in printed
    assert "1,234" in printed
    assert "…" not in printed


def test_without_rich_a_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert console.terminal() is not None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert console.terminal() is None
    assert console.width() == 180


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_what_steers_a_terminal_is_not_printed(
    on_a_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_on = Console(width=200, force_terminal=True, color_system=None) if on_a_terminal else None
    monkeypatch.setattr(console, "terminal", lambda: drawn_on)
    evil = "a\x1b[2J\x07\x9b\u202e"
    console.print_table(evil, ("name",), [[evil]], words=("name",), note=f"{evil}\n{evil}")
    console.print_sentence(evil)
    console.print_line(evil)
    printed = capsys.readouterr().out
    assert printed.count("a\ufffd[2J\ufffd\ufffd\ufffd") == 6
    assert {*"\x07\x9b\u202e"} & {*printed} == set()
    assert "\x1b[2J" not in printed


def test_json_has_codes_for_what_does_not_show(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json('{"a": "\u202e\x9b\udcffσ"}\n')
    assert capsys.readouterr().out == '{"a": "\\u202e\\u009b\\udcffσ"}\n'
