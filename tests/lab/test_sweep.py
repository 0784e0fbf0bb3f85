"""A sweep: after a kill no point is lost and none is run twice; its grid is drawn from its records."""

from __future__ import annotations

import signal
import time
from itertools import product

import optuna
import pytest
from lab_commands import start

from sgd_sai.cli import main
from sgd_sai.lab import sweep, sweep_page
from sgd_sai.lab.records import Record, Run, RunConfig, read_runs

GRID = {"lr": [0.1, 1.0], "weight_decay": [0.0, 1e-3]}
POINTS = set(product(*GRID.values()))


def sweeping(out, *more):
    """The arguments of a small sweep of a real model."""
    given = ["sweep", "--task", "cnn", "--optimizer", "sgd-sai", "--steps", "30", "--threads", "1"]
    return [*given, "--lr", "1,0.1", "--weight-decay", "0,1e-3", "--out", str(out), *more]


def trials(out):
    study = optuna.load_study(study_name="cnn-sgd-sai-0", storage=f"sqlite:///{out / 'sweep.db'}")
    return study.get_trials(deepcopy=False)


def completed(found):
    return [
        (trial.params["lr"], trial.params["weight_decay"])
        for trial in found
        if trial.state == optuna.trial.TrialState.COMPLETE
    ]


def test_a_killed_sweep_loses_no_point_and_runs_none_twice(tmp_path, capsys):
    out = tmp_path / "sweep"
    process = start(sweeping(out, "--jobs", "2"))
    deadline = time.monotonic() + 200
    finished = []
    while not finished and time.monotonic() < deadline and process.poll() is None:
        finished = [path for path in out.glob("*/run.json") if Record.read(path.parent).status == "finished"]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished, "no run ended before the kill"
    time.sleep(2)  # the runs see that their parent is gone
    before = {path: path.read_bytes() for path in finished}
    assert main(sweeping(out, "--resume")) == 0
    assert sorted(completed(trials(out))) == sorted(POINTS)
    assert all(path.read_bytes() == content for path, content in before.items())
    count = len(trials(out))
    assert main(sweeping(out, "--resume")) == 0  # nothing is left
    assert len(trials(out)) == count
    runs = read_runs([out])
    assert {(run.record.config.lr, run.record.config.weight_decay) for run in runs} == POINTS
    assert all(run.record.status == "finished" for run in runs)
    page = (out / "sweep.html").read_text()
    assert '"type":"surface"' in page
    assert '"type":"heatmap"' in page
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_points_that_were_lost_come_back_once():
    storage = optuna.storages.InMemoryStorage()
    first = sweep.Sweep("s", storage, GRID)
    lost = [first.ask()[1] for _ in range(2)]  # their process is killed here
    for _ in range(2):  # twice, as if the second was killed too
        again = sweep.Sweep("s", storage, GRID)
    assert again.left == 4
    asked = []
    while again.left:
        trial, point = again.ask()
        asked.append(point)
        again.tell(trial, ended(point))
    assert sorted(asked) == sorted(POINTS)
    assert set(lost) <= set(asked)


def ended(point, status="finished"):
    config = RunConfig("cnn", "sgd-sai", 0, 1, point[0], None, 1, point[1])
    result = {"val_loss": 1.0, "val_accuracy": 0.75}
    return Record(
        config, status, {"metric": "val_accuracy", "title": "A task"}, 1, None, {}, {}, "", "", result
    )


def test_a_point_that_diverged_has_no_number():
    runs = [Run(ended(point, "diverged" if point == (1.0, 0.0) else "finished"), [], []) for point in POINTS]
    (grid,) = sweep_page.grids(runs)
    assert grid.found == [[0.75, None], [0.75, 0.75]]
    assert (
        grid.summary == "A task, SGD-SaI, seed 0: best 0.75, mean 0.75, over the 3 of 4 points that finished"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "0.1,x"], ["--lr", "'x'"]),
        (["--weight-decay", "-1"], ["--weight-decay", "'-1'"]),
        (["--jobs", "0"], ["--jobs", "'0'"]),
        (["--storage", "nosuch://place"], ["--storage", "nosuch"]),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, capsys):
    assert main([*sweeping(tmp_path / "out"), *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert [word for word in words if word not in message] == []
