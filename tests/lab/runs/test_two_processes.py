"""Two processes in one folder: each trains what it was asked for, or says in one line why not."""

from __future__ import annotations

import signal
import threading

import pytest
from lab_commands import PATIENCE, compare, start, wait_for_step

from run_files import files_of, set_status
from sgd_sai.cli import main
from sgd_sai.lab import arguments
from sgd_sai.lab.records import RUN, Record, RunConfig
from sgd_sai.lab.runs import runner
from sgd_sai.lab.runs.training import CHECKPOINT_EVERY, LOG_EVERY

OF = "cnn-sgd-sai-0"
#: Where the first process is held: a line after a checkpoint.
HELD, STEPS = CHECKPOINT_EVERY + LOG_EVERY, 40


@pytest.fixture
def meanwhile(monkeypatch):
    """Set what happens while the data is loaded: the folder was looked at, and nothing is written."""
    check = arguments.check_data

    def happens(what):
        def checked(*given):
            check(*given)
            what()

        monkeypatch.setattr(arguments, "check_data", checked)

    return happens


def refused(arguments, capsys):
    """The last line that a command prints, which ends with exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def ended(out):
    """Another process runs from its start to its end."""
    process = start(compare(out, steps=5, lr="1"))
    assert process.wait(PATIENCE) == 0, process.stderr.read()


def test_a_folder_that_another_process_fills_is_not_read_as_ones_own(tmp_path, meanwhile, capsys):
    out = tmp_path / "out"
    meanwhile(lambda: ended(out))
    line = refused(compare(out, steps=9, lr="0.1"), capsys)
    assert line.startswith(f"sgd-sai: --out: another process has just begun runs in {out};")
    assert Record.read(out / OF).config.lr == 1


@pytest.mark.parametrize("more", [[], ["--jobs", "2"]], ids=["one job", "two jobs"])
def test_a_run_that_another_process_has_ended_meanwhile_is_another_run(more, tmp_path, meanwhile, capsys):
    """The folder was empty when it was looked at; --resume shares it."""
    out = tmp_path / "out"
    meanwhile(lambda: ended(out))
    line = refused(compare(out, "--resume", *more, steps=9, lr="0.1"), capsys)
    assert line.startswith(f"sgd-sai: --resume: {out / OF} holds a run with ")
    assert "steps 5, not 9" in line
    assert "lr 1.0, not 0.1" in line
    assert (Record.read(out / OF).status, Record.read(out / OF).config.lr) == ("finished", 1)


def test_a_run_whose_process_is_killed_is_not_gone_on_with_by_another(tmp_path, meanwhile, capsys):
    """That waits for it, and would train on from its checkpoint."""
    out = tmp_path / "out"
    left = {}

    def held():
        process = start(compare(out, steps=STEPS, lr="1"), held_at=HELD)
        wait_for_step(process, out / OF, HELD)
        left.update(files_of(out / OF))
        threading.Timer(1.0, process.kill).start()

    meanwhile(held)
    line = refused(compare(out, "--resume", steps=STEPS, lr="0.1"), capsys)
    assert "lr 1.0, not 0.1" in line
    assert files_of(out / OF) == left


def test_a_process_that_waits_says_so_and_goes_on_with_the_same_run(tmp_path):
    out = tmp_path / "out"
    first = start(compare(out, steps=STEPS), held_at=HELD)
    wait_for_step(first, out / OF, HELD)
    second = start(compare(out, "--resume", steps=STEPS))
    said = next(line for line in second.stderr if line.startswith("sgd-sai: "))
    assert said == f"sgd-sai: {out / OF}: another process has this run; waiting for it\n"
    first.send_signal(signal.SIGKILL)
    _, rest = second.communicate(timeout=PATIENCE)
    assert (second.returncode, "sgd-sai: " in rest) == (0, False)
    assert Record.read(out / OF).status == "finished"


def test_two_processes_that_start_at_once(tmp_path):
    """One has the folder, whichever it is, and the other says so."""
    out = tmp_path / "out"
    both = {lr: start(compare(out, steps=5, lr=lr)) for lr in ("1.0", "0.1")}
    errors = {lr: process.communicate(timeout=PATIENCE)[1] for lr, process in both.items()}
    (winner,) = (lr for lr, process in both.items() if process.returncode == 0)
    (loser,) = both.keys() - {winner}
    assert both[loser].returncode == 2
    assert errors[loser].splitlines()[-1].startswith("sgd-sai: --out: ")
    assert "Traceback" not in errors[loser]
    record = Record.read(out / OF)
    assert (record.config.lr, record.status) == (float(winner), "finished")


@pytest.mark.parametrize("command", ["tune", "sweep"])
def test_the_other_commands_claim_their_folder_too(command, tmp_path, meanwhile, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    meanwhile(lambda: arguments.make_folder(out, resume=False))
    given = [command, "--task", "cnn", "--optimizer", "sgd", "--steps", "2", "--out", str(out)]
    assert "another process has just begun runs" in refused(given, capsys)
    assert [path.name for path in out.iterdir()] == [".begun"]


def test_tune_goes_on_with_its_own_runs_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = RunConfig("cnn", "sgd", 100, 2, 0.01, None, 1)
    runner.train(config, tmp_path / "out" / "cnn-sgd-0.01", None, lambda *_: None)
    before = files_of(tmp_path / "out")
    given = ["tune", "--task", "cnn", "--optimizer", "sgd", "--threads", "1", "--out", "out", "--resume"]
    assert "steps 2, not 3" in refused([*given, "--steps", "3"], capsys)
    assert {path: what for path, what in files_of(tmp_path / "out").items() if path in before} == before


@pytest.mark.parametrize("name", [".lock", RUN])
def test_a_folder_in_the_place_of_a_file(name, tmp_path, capsys):
    out = tmp_path / "out"
    (out / OF / name).mkdir(parents=True)
    line = refused(compare(out, "--resume", steps=2), capsys)
    assert line.startswith(f"sgd-sai: {out / OF / name}: not ")
    assert [path.name for path in out.rglob("*") if path.is_file()] == [".begun"][: name == ".lock"]


def test_a_lock_does_not_empty_the_file_that_its_name_leads_to(tmp_path):
    out, mine = tmp_path / "out", tmp_path / "mine"
    assert main(compare(out, steps=2)) == 0
    set_status(out / OF, "interrupted")
    mine.write_text("mine")
    (out / OF / ".lock").unlink()
    (out / OF / ".lock").symlink_to(mine)
    assert main(compare(out, "--resume", steps=2)) == 0
    assert mine.read_text() == "mine"
