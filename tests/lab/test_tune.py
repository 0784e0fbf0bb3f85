"""Tuning: the grid is the same rule for all, and the best point is not on its edge."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from sgd_sai.cli import CommandError, main
from sgd_sai.lab import tuned
from sgd_sai.lab.optimizers import DEFAULT, OPTIMIZERS
from sgd_sai.lab.provenance import machine
from sgd_sai.lab.records import Record, RunConfig
from sgd_sai.lab.tasks import DEFAULT as DEFAULT_TASKS
from sgd_sai.lab.tasks import TASKS
from sgd_sai.lab.tune import SEED, _entry, equalise, search


def record_at(lr, best):
    """What a run with `lr` would leave whose loss is least at `best`; beyond ten times that it diverges."""
    config = RunConfig("gpt", "sgd", SEED, 10, lr, None, 1)
    diverged = lr > 10.1 * best
    result = (
        {"diverged_at": 3} if diverged else {"val_loss": 1 + abs(math.log(lr / best)), "val_accuracy": 0.5}
    )
    task = {"metric": "val_loss", "data": "none"}
    return Record(
        config, "diverged" if diverged else "finished", task, 1, None, machine(), {}, "", "", result
    )


@pytest.mark.parametrize(
    ("best", "grid"),
    [
        (0.1, [0.01, 0.0316, 0.1, 0.316, 1.0]),
        (1.0, [0.01, 0.0316, 0.1, 0.316, 1.0, 3.16]),
        (0.001, [0.000316, 0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0]),
    ],
)
def test_the_grid_grows_until_the_best_is_inside(best, grid):
    records = search(0.1, lambda lr: record_at(lr, best))
    assert [record.config.lr for record in records] == grid
    assert min(records, key=lambda r: r.result.get("val_loss", math.inf)).config.lr == best


def test_a_search_without_end_gives_up():
    with pytest.raises(CommandError, match="no learning rate"):
        search(0.1, lambda lr: record_at(lr, 1e9))
    with pytest.raises(CommandError, match="no learning rate"):
        search(0.1, lambda lr: record_at(lr, 1e-9))


def test_budgets_are_made_equal_around_the_best(tmp_path):
    """Of two searches the shorter one goes on between its points, until both have as many trials."""
    path = tmp_path / "tuned.jsonl"
    wide, narrow = (search(0.1, lambda lr, best=best: record_at(lr, best)) for best in (0.001, 0.17))
    tuned.enter(path, "gpt", "adamw", _entry(wide))
    tuned.enter(path, "gpt", "sgd", _entry(narrow))
    equalise(path, "gpt", ["adamw", "sgd"], lambda optimizer, lr: record_at(lr, 0.17))
    entries = tuned.read(path)["gpt"]
    assert entries["adamw"]["grid"] == [record.config.lr for record in wide]
    assert entries["sgd"]["grid"] == [0.01, 0.0316, 0.0563, 0.1, 0.178, 0.316, 0.563, 1.0]
    assert entries["sgd"]["lr"] == 0.178


def test_a_best_that_extra_trials_put_on_an_edge_is_passed(tmp_path):
    path = tmp_path / "tuned.jsonl"
    tuned.enter(path, "gpt", "adamw", _entry(search(0.1, lambda lr: record_at(lr, 0.001))))
    tuned.enter(path, "gpt", "sgd", _entry(search(0.1, lambda lr: record_at(lr, 0.17))))
    of_sgd = tuned.read(path)["gpt"]["sgd"]
    tuned.enter(path, "gpt", "sgd", {**of_sgd, "lr": 1.0})
    equalise(path, "gpt", ["adamw", "sgd"], lambda optimizer, lr: record_at(lr, 0.17))
    entries = tuned.read(path)["gpt"]
    assert len(entries["sgd"]["grid"]) == len(entries["adamw"]["grid"])
    for entry in entries.values():
        assert entry["lr"] in entry["grid"][1:-1]


def test_a_search_alone_goes_on_from_an_edge(tmp_path):
    """None is shorter than another; its best alone makes it go on."""
    path = tmp_path / "tuned.jsonl"
    found = _entry(search(0.1, lambda lr: record_at(lr, 0.17)))
    tuned.enter(path, "gpt", "sgd", {**found, "lr": 1.0})
    equalise(path, "gpt", ["sgd"], lambda optimizer, lr: record_at(lr, 0.17))
    entry = tuned.read(path)["gpt"]["sgd"]
    assert entry["grid"] == [*(point["lr"] for point in found["points"]), 3.16]
    assert entry["lr"] in entry["grid"][1:-1]


def test_a_result_is_entered_and_used(tmp_path):
    path = tmp_path / "tuned.jsonl"
    small = ["--task", "cnn", "--optimizer", "adamw", "--steps", "6", "--threads", "1", "--tuned", str(path)]
    assert main(["tune", *small, "--out", str(tmp_path / "tune")]) == 0
    entry = tuned.read(path)["cnn"]["adamw"]
    assert entry["grid"] == [point["lr"] for point in entry["points"]]
    assert entry["lr"] in entry["grid"][1:-1]
    assert len(list((tmp_path / "tune").glob("*/run.json"))) == len(entry["grid"])
    assert main(["tune", *small, "--missing", "--out", str(tmp_path / "none")]) == 0
    assert not list((tmp_path / "none").glob("*/run.json"))  # nothing was missing
    assert main(["compare", *small, "--out", str(tmp_path / "out")]) == 0
    assert Record.read(tmp_path / "out" / "cnn-adamw-0").config.lr == entry["lr"]


def test_the_package_knows_a_rate_for_all_that_is_compared_by_default():
    entries = tuned.read(tuned.OWN)
    for task in DEFAULT_TASKS:
        assert set(DEFAULT) <= set(entries[task])
    assert entries.keys() <= TASKS.keys()
    for task, row in entries.items():
        for name, entry in row.items():
            assert OPTIMIZERS[name].tuned_as is None
            assert entry["lr"] in entry["grid"][1:-1]
            assert entry["seed"] == SEED
            assert entry["steps"] == TASKS[task].steps
            quarters = [4 * math.log10(b / a) for a, b in pairwise(entry["grid"])]
            assert all(quarter == pytest.approx(round(quarter), abs=0.02) for quarter in quarters)
            assert {round(quarter) for quarter in quarters} <= {1, 2}
