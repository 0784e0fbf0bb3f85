"""The processes of `--jobs`: none outlives its parent or keeps it waiting; one that is killed is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from lab_commands import PATIENCE, compare, start, wait_for_step
from lab_data import write_folders

from sgd_sai.cli import main
from sgd_sai.lab.records import Record
from sgd_sai.lab.runs.training import LOG_EVERY

RUNS = "cnn-sgd-sai-0", "cnn-sgd-sai-1"
BOTH = ("--seeds", "0,1", "--jobs", "2")


def workers(process):
    """The processes that a command has for its runs; the one that counts semaphores is none of them."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [each for each in family if "spawn_main" in " ".join(each.cmdline())]


@contextmanager
def begun(folder, phase):
    """A command whose two workers import, or load their data, or have taken steps, and all its processes."""
    pictures, out = folder / "pictures", folder / "out"
    loading = phase == "loading"
    if loading:
        write_folders(pictures, 80)
    more = ["--data", str(pictures)] if loading else []
    process = start(compare(out, *BOTH, *more, task="vit" if loading else "cnn", steps=5000))
    try:
        while len(workers(process)) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        with ExitStack() as opened:
            if loading:  # they wait for what this picture holds
                picture = next(pictures.rglob("*.png"))
                picture.unlink()
                os.mkfifo(picture)
                opened.enter_context(picture.open("wb"))  # once a worker has begun to read
            if phase == "training":
                for run in RUNS:
                    wait_for_step(process, out / run, LOG_EVERY)
            yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()


PHASES = pytest.mark.parametrize("phase", ["importing", "loading", "training"])


@PHASES
def test_they_end_with_a_parent_that_was_killed(phase, tmp_path):
    with begun(tmp_path, phase) as (process, family):
        process.kill()
        process.wait()
        assert psutil.wait_procs(family, PATIENCE)[1] == []


def test_one_that_waits_for_a_run_ends_with_its_parent(tmp_path):
    """Which was killed, and could not tell it."""
    code = """
import sys, time
from pathlib import Path
from sgd_sai.lab.records import RunConfig
from sgd_sai.lab.runs.workers import PlannedRun, Workers

if __name__ == "__main__":
    with Workers(1) as workers:
        workers.begin(PlannedRun(RunConfig("cnn", "sgd-sai", 0, 1, 0.1, None, 1), Path(sys.argv[1])))
        while workers.busy:
            workers.hear()
        print("idle", flush=True)
        time.sleep(3600)
"""
    given = [sys.executable, "-c", code, str(tmp_path / "run")]
    parent = subprocess.Popen(given, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "idle\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) > 1
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(family, PATIENCE)[1] == []


@PHASES
def test_quick_ctrl_cs_are_one(phase, tmp_path):
    """As a terminal sends them, to all processes; nobody is left, nobody complains."""
    with begun(tmp_path, phase) as (process, family):
        for _ in range(4):
            for each in (process, *family):
                each.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert psutil.wait_procs(family, PATIENCE)[1] == []
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    if phase == "training":
        assert [Record.read(tmp_path / "out" / run).status for run in RUNS] == ["interrupted"] * 2
        assert "stopped at step" in (tmp_path / "out" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_later_ctrl_c_ends_it_at_once(jobs, tmp_path):
    """Where the first waits for a step that does not end."""
    process = start(compare(tmp_path, "--jobs", jobs, "--seeds", "0", steps=20), held_at=LOG_EVERY)
    wait_for_step(process, tmp_path / RUNS[0], LOG_EVERY)
    family = psutil.Process(process.pid).children(recursive=True)
    for each in family:
        each.suspend()  # nor does it hear that it is to stop
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1.2)
    for each in family:
        each.resume()
    assert process.wait(PATIENCE) == 130
    assert psutil.wait_procs(family, PATIENCE)[1] == []
    assert Record.read(tmp_path / RUNS[0]).status == "running"


def test_one_that_is_killed_is_named_and_the_others_go_on(tmp_path, capsys):
    given = compare(tmp_path, *BOTH, "--resume", steps=150)
    process = start(given)
    for run in RUNS:
        wait_for_step(process, tmp_path / run, LOG_EVERY)
    workers(process)[0].kill()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("sgd-sai: ")]
    assert "cnn · SGD-SaI · seed " in line
    assert "its process was killed by SIGKILL, perhaps for want of memory" in line
    assert f"--resume with --out {tmp_path} goes on" in line
    assert "Traceback" not in errors
    assert sorted(Record.read(tmp_path / run).status for run in RUNS) == ["finished", "running"]
    assert (tmp_path / "report.html").exists()
    assert main(given) == 0
    assert [Record.read(tmp_path / run).status for run in RUNS] == ["finished", "finished"]


def test_an_error_of_a_run_is_the_commands(tmp_path, capsys):
    """As without `--jobs`: here a checkpoint that is none."""
    assert main(compare(tmp_path, "--seeds", "0", "--resume", steps=5)) == 0
    path = tmp_path / RUNS[0] / "run.json"
    path.write_text(path.read_text("utf-8").replace('"finished"', '"running"'), "utf-8")
    (tmp_path / RUNS[0] / "checkpoint.pt").write_bytes(b"nothing")
    capsys.readouterr()
    assert main(compare(tmp_path, *BOTH, "--resume", steps=5)) == 2
    assert "checkpoint.pt: not a checkpoint" in capsys.readouterr().err
