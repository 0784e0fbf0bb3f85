"""A packed study says all that the folders of its runs say, and a damaged one says what is damaged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sgd_sai.cli import main
from sgd_sai.lab import packed
from sgd_sai.lab.faults import DamagedRun
from sgd_sai.lab.reading import read_runs


@pytest.fixture
def study(runs, tmp_path, capsys):
    """The session's runs, packed by the command."""
    assert main(["report", str(runs), "--pack", str(tmp_path / "packed")]) == 0
    assert capsys.readouterr().out == f"packed: {tmp_path / 'packed'}\n"
    return tmp_path / "packed"


def test_the_report_of_a_packed_study_is_that_of_its_runs(runs, study, tmp_path):
    assert sorted(path.name for path in study.iterdir()) == [packed.CURVES, packed.RUNS]
    assert read_runs([study]) == read_runs([runs])
    page = tmp_path / "page.html"
    assert main(["report", str(study), "--out", str(page)]) == 0
    assert page.read_bytes() == (runs / "report.html").read_bytes()
    for name in ("steps", "seconds", "final", "gsnr"):
        drawn = (tmp_path / f"page-{name}.png").read_bytes()
        assert drawn == (runs / f"report-{name}.png").read_bytes()


def test_every_run_is_kept_as_it_is(runs, tmp_path):
    """What a run made, one that diverged, one without curves, one with null in its g-SNR."""
    (first, second, third, *_) = read_runs([runs])
    gsnr = replace(second.gsnr, steps={0: [None] * len(second.gsnr.d)})
    lost = {"steps": 3, "seconds": 0.5, "state_bytes": 8}
    diverged = replace(second.record, status="diverged", result={**lost, "diverged_at": 3}, tuning=None)
    kept = [
        replace(first, pictures=b"\x89PNG\r\n\x1a\n", text="def f():\n\u2028 return 'λ'"),
        replace(second, record=diverged, gsnr=gsnr, evaluations=second.evaluations[:1]),
        replace(third, training=[], evaluations=[], gsnr=None),
    ]
    packed.write(kept, tmp_path / "packed")
    assert packed.read(tmp_path / "packed") == kept
    packed.write(kept[2:], tmp_path / "packed")  # another study in its place
    assert packed.read(tmp_path / "packed") == kept[2:]
    assert not (tmp_path / "packed" / packed.CURVES).exists()


def test_folders_and_packed_studies_side_by_side(runs, study):
    assert len(read_runs([runs, study])) == 2 * len(read_runs([runs]))


@pytest.mark.parametrize("file", [packed.RUNS, packed.CURVES])
@pytest.mark.parametrize("how", ["cut", "empty", "a line less", "other fields"])
def test_a_damaged_study_is_named(file, how, study, tmp_path, capsys):
    content = (study / file).read_text("utf-8")
    damaged = {
        "cut": content[: len(content) // 2],
        "empty": "",
        "a line less": "".join(content.splitlines(keepends=True)[:-1]),
        "other fields": '{"run": 3}\n',
    }
    (study / file).write_text(damaged[how], "utf-8")
    with pytest.raises(DamagedRun):
        read_runs([study])
    assert main(["report", str(study), "--out", str(tmp_path / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    named = packed.CURVES if how == "a line less" else file  # where the runs do not fit
    assert line.startswith(f"sgd-sai: {study / named}: not the records of runs (")
    assert not (tmp_path / "page.html").exists()


def test_where_a_study_can_be_packed(runs, tmp_path, capsys):
    """Not among the folders of runs, which would be counted twice, nor where nothing can be written."""
    (tmp_path / "file").write_text("mine")
    for folder, reason in (
        (runs, "holds the folders of runs"),
        (tmp_path / "file", "cannot write"),
        (tmp_path / "no" / "packed", "cannot write"),
    ):
        assert main(["report", str(runs), "--pack", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            f"sgd-sai: --pack: {reason}"
            if reason == "cannot write"
            else f"sgd-sai: --pack: {folder} {reason}"
        )
    assert (tmp_path / "file").read_text() == "mine"
    assert main(["report", str(tmp_path), "--pack", str(tmp_path / "packed")]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()
