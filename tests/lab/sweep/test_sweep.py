"""A sweep: after a kill no point is lost and none is run twice; its grid is drawn from its records."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from contextlib import nullcontext
from functools import partial
from itertools import product

import optuna
import psutil
import pytest
from lab_commands import PATIENCE, start

from sgd_sai.cli import main
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.records import Record, Run, RunConfig
from sgd_sai.lab.sweep import page as sweep_page
from sgd_sai.lab.sweep import trials as sweep_trials
from sgd_sai.lab.sweep.axes import Axes
from sgd_sai.lab.sweep.results import grids
from sgd_sai.lab.sweep.trials import Trials, alone

GRID = {"lr": [0.1, 1.0], "weight_decay": [0.0, 1e-3]}
POINTS = set(product(*GRID.values()))
AXES = Axes(*GRID.values())


def sweeping(out, *more):
    """The arguments of a small sweep of a real model."""
    given = ["sweep", "--task", "cnn", "--optimizer", "sgd-sai", "--steps", "10", "--threads", "1"]
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
    finished = []
    while not finished:
        assert process.poll() is None, process.stderr.read()
        finished = [path for path in out.glob("*/run.json") if Record.read(path.parent).status == "finished"]
        time.sleep(0.05)
    running = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(running, PATIENCE)[1] == []  # the runs see that their parent is gone
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


def opened(storage, name="s"):
    return Trials(name, storage, AXES, {"steps": 1, "data": "none"})


def test_points_of_a_process_that_is_gone_come_back_once():
    storage = optuna.storages.InMemoryStorage()
    first = opened(storage)
    lost = [first.claim() for _ in range(2)]
    assert opened(storage).claim()[1] not in [point for _, point in lost]
    for trial, _ in lost:
        trial.set_user_attr("owner", [socket.gethostname(), os.getpid(), 0.0])
    again, asked = opened(storage), []
    while claimed := again.claim():
        trial, point = claimed
        asked.append(point)
        again.tell(trial, ended(point))
    assert len(asked) == len(set(asked)) == 3
    assert {point for _, point in lost} <= set(asked)
    first.tell(lost[0][0], ended(lost[0][1]))  # it was not dead after all: nothing happens
    assert sorted(completed(first.optuna_study.get_trials())) == sorted(asked)


@pytest.mark.parametrize("lock", [nullcontext, lambda: nullcontext()], ids=["no lock", "lock"])
def test_a_process_that_dies_while_it_claims_loses_no_point(lock, monkeypatch):
    """Between having a trial and putting its name to it."""
    monkeypatch.setattr(sweep_trials, "CLAIMING", 1.5)
    storage = optuna.storages.InMemoryStorage()
    first = opened(storage)
    first._enter()
    first.optuna_study.ask()  # and no more
    again = Trials("s", storage, AXES, {"steps": 1, "data": "none"}, lock)
    asked = []
    while claimed := again.claim():
        trial, point = claimed
        asked.append(point)
        again.tell(trial, ended(point))
    assert sorted(asked) == sorted(POINTS)


def test_a_silent_process_elsewhere_is_taken_for_dead():
    first = opened(optuna.storages.InMemoryStorage())
    trial, point = first.claim()
    trial.set_user_attr("owner", ["another machine", 1, 0.0])
    rest = [first.claim()[1] for _ in range(3)]
    assert first.claim() is None
    trial.set_user_attr("seen", time.time() - sweep_trials.SILENCE - 1)
    assert first.claim()[1] == point
    assert point not in rest


def claims(url, ready, found):
    """All that one of several processes can claim of a SQLite file that none has made yet."""
    ready.wait()
    with alone(url):
        storage = optuna.storages.get_storage(url)
    one = Trials("s", storage, AXES, {"steps": 1, "data": "none"}, partial(alone, url))
    while claimed := one.claim():
        trial, point = claimed
        one.tell(trial, ended(point))
        found.put(point)


def test_processes_that_race_for_points_have_each_once(tmp_path):
    """Without the lock they collide at making the tables, or have a waiting trial together."""
    spawn = multiprocessing.get_context("spawn")
    for turn in range(2):
        ready, found = spawn.Barrier(3), spawn.Queue()
        given = f"sqlite:///{tmp_path / str(turn)}.db", ready, found
        processes = [spawn.Process(target=claims, args=given) for _ in range(3)]
        for process in processes:
            process.start()
        points = [found.get(timeout=PATIENCE) for _ in POINTS]
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert sorted(points) == sorted(POINTS)
        assert found.empty()


def test_two_processes_share_a_storage(tmp_path):
    """Each point is run once, by one of them."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    outs = [tmp_path / "one", tmp_path / "two"]
    processes = [start(sweeping(out, "--storage", url)) for out in outs]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]
    found = optuna.load_study(study_name="cnn-sgd-sai-0", storage=url).get_trials(deepcopy=False)
    assert sorted(completed(found)) == sorted(POINTS)
    runs = [run.record.config for run in read_runs(outs)]
    assert sorted((config.lr, config.weight_decay) for config in runs) == sorted(POINTS)


def test_a_grid_grows_where_its_best_lies_on_an_edge():
    axes = Axes([0.1, 1.0], [0.0, 1e-3])
    assert axes.grown((1.0, 1e-3)) == Axes([0.1, 1.0, 10.0], [0.0, 1e-3, 0.01])
    assert axes.grown((0.1, 0.0)) == Axes([0.01, 0.1, 1.0], [0.0, 1e-3])
    assert Axes([0.1, 1.0, 10.0], [0.0]).grown((1.0, 0.0)) is None
    near = Axes([1.0001, 1.0002], [0.0])  # three digits would bring the next back to 1
    assert near.grown((1.0002, 0.0)).rates[2] == pytest.approx(1.0003, abs=1e-7)
    assert Axes([0.99991, 0.99992], [0.0]).grown((0.99991, 0.0)).rates[0] == pytest.approx(0.9999, abs=1e-7)


def test_it_goes_on_with_a_wider_grid_but_not_with_other_runs(tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main([*sweeping(out, "--lr", "1", "--weight-decay", "0", "--steps", "2")]) == 0
    assert main([*sweeping(out, "--lr", "1,0.5", "--weight-decay", "0", "--steps", "2", "--resume")]) == 0
    assert len(read_runs([out])) == 2
    capsys.readouterr()
    assert main([*sweeping(out, "--steps", "3", "--resume")]) == 2
    assert "steps 2, not 3" in capsys.readouterr().err
    assert main([*sweeping(tmp_path / "new", "--storage", f"sqlite:///{out / 'sweep.db'}")]) == 2
    assert "has runs with steps 2, not 10" in capsys.readouterr().err


def test_a_run_that_fails_is_one_line_and_the_others_go_on(tmp_path, capsys):
    out = tmp_path / "sweep"
    out.mkdir()
    (out / "cnn-sgd-sai-0-lr1-wd0").write_text("no folder")
    assert main([*sweeping(out, "--lr", "1,0.5", "--weight-decay", "0", "--steps", "2", "--resume")]) == 1
    printed = capsys.readouterr().out
    assert "lr 1 · λ 0: failed, FileExistsError" in printed
    assert "lr 0.5 · λ 0: validation loss" in printed


def test_points_that_are_equal_in_six_digits_are_points_of_their_own(tmp_path):
    """Each has its run, its folder, and its place on the axes."""
    out = tmp_path / "sweep"
    rates, decays = (0.12345678, 0.12345679), (0.0010000001, 0.0010000002)
    given = ["--lr", ",".join(map(repr, rates)), "--weight-decay", ",".join(map(repr, decays))]
    assert main(sweeping(out, *given, "--steps", "2")) == 0
    runs = read_runs([out])
    points = [(run.record.config.lr, run.record.config.weight_decay) for run in runs]
    assert sorted(points) == list(product(rates, decays))
    assert len([*out.glob("*/run.json")]) == 4
    assert all(f'"{value!r}"' in (out / "sweep.html").read_text() for value in (*rates, *decays))


def test_a_process_that_is_killed_is_a_line_and_the_others_go_on(tmp_path, capfd):
    out = tmp_path / "sweep"
    given = sweeping(out, "--lr", "1,0.5", "--weight-decay", "0", "--steps", "300", "--jobs", "2", "--resume")
    process = start(given)
    while not list(out.glob("*/metrics.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    family = psutil.Process(process.pid).children()
    next(each for each in family if "spawn_main" in " ".join(each.cmdline())).kill()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    printed = capfd.readouterr().out
    assert printed.count("failed, its process was killed by SIGKILL, perhaps for want of memory") == 1
    assert printed.count("validation loss") == 1
    assert main(given) == 0
    assert [run.record.status for run in read_runs([out])] == ["finished", "finished"]


@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it(browser, width, tmp_path):
    runs = [Run(ended(point), [], []) for point in POINTS]
    (tmp_path / "sweep.html").write_text(sweep_page.page(runs))
    page = browser.new_page(viewport={"width": width, "height": 844})
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "sweep.html").as_uri())
    page.wait_for_selector(".heatmaplayer .hm")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heat, surface = (page.locator(".sweep > div").nth(i).bounding_box() for i in (0, 1))
    assert (surface["y"] > heat["y"]) == (width == 390)  # below each other, or side by side
    assert complaints == []
    page.close()


def ended(point, status="finished"):
    config = RunConfig("cnn", "sgd-sai", 0, 1, point[0], None, 1, point[1])
    result = {"val_loss": 1.0, "val_accuracy": 0.75}
    return Record(
        config, status, {"metric": "val_accuracy", "title": "A task"}, 1, None, {}, {}, "", "", result
    )


def test_a_point_that_diverged_has_no_number():
    runs = [Run(ended(point, "diverged" if point == (1.0, 0.0) else "finished"), [], []) for point in POINTS]
    (grid,) = grids(runs)
    assert grid.found == [[0.75, None], [0.75, 0.75]]
    assert grid.summary == (
        "A task, SGD-SaI, seed 0: best 0.75, mean 0.5625, 3 of 4 points finished; "
        "the best is on the edge of the learning rates"
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
