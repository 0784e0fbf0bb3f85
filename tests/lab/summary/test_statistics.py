"""Paired differences and times to a target, on records made by hand and against scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from sgd_sai.lab.records import Record, Run, RunConfig
from sgd_sai.lab.report import page
from sgd_sai.lab.summary import statistics

ADAMW = {0: 2.00, 1: 2.10, 2: 2.05, 3: 1.90}
OURS = {0: 2.10, 1: 2.15, 2: 2.20, 3: 1.95}
TASK = {"title": "A task", "about": "a model", "metric": "val_loss", "unit": "nats", "data": "text"}


def made(optimizer, seed, curve, status="finished"):
    """A run whose held-out losses are `curve`, ten steps and two seconds apart."""
    config = RunConfig("gpt", optimizer, seed, 10 * (len(curve) - 1), 0.1, None, 1)
    result = {
        "steps": config.steps,
        "seconds": 2.0 * (len(curve) - 1),
        "state_bytes": 8,
        "val_loss": curve[-1],
    }
    machine = {"processor": "one", "cores": 2, "memory_gib": 1, "system": "Linux"}
    task = {**TASK, "clip": None, "shrink": 0.0}
    record = Record(config, status, task, 1, None, machine, {}, "", f"2026-01-0{seed + 1}", result)
    lines = [{"step": 10 * k, "seconds": 2.0 * k, "val_loss": loss} for k, loss in enumerate(curve)]
    return Run(record, [], lines)


def ends(optimizer, losses):
    return [made(optimizer, seed, [3.0, loss]) for seed, loss in losses.items()]


def test_the_interval_is_that_of_the_paired_t_test():
    found = statistics.difference(ends("sgd-sai", OURS), ends("adamw", ADAMW), "val_loss")
    test = stats.ttest_rel(list(OURS.values()), list(ADAMW.values()))
    expected = test.confidence_interval(0.95)
    assert found.pairs == 4
    assert found.mean == pytest.approx(0.0875)
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_three_seeds_by_hand():
    ours, adamw = {0: 1.1, 1: 2.2, 2: 3.3}, {0: 1.0, 1: 2.0, 2: 3.0}
    found = statistics.difference(ends("sgd-sai", ours), ends("adamw", adamw), "val_loss")
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom; differences 0.1, 0.2, 0.3
    assert found.mean == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half))


def test_only_seeds_that_both_finished_are_pairs():
    ours = [*ends("sgd-sai", {1: 2.0, 7: 1.0}), made("sgd-sai", 2, [3.0, 1.0], status="diverged")]
    found = statistics.difference(ours, ends("adamw", ADAMW), "val_loss")
    assert found == statistics.Difference(pytest.approx(-0.1), None, 1)
    assert statistics.difference(ours, ends("adamw", {5: 1.0}), "val_loss") is None


def test_when_a_target_is_reached():
    base = [made("adamw", seed, [3.0, 2.5, 2.0]) for seed in (0, 1, 2)]
    runs = [
        made("sgd-sai", 0, [3.0, 2.0, 1.5]),  # at step 10
        made("sgd-sai", 1, [3.0, 2.6, 1.9]),  # at step 20
        made("sgd-sai", 2, [3.0, 2.9, 2.8]),  # never
    ]
    assert statistics.reached(runs, base, "val_loss", higher=False) == statistics.Reached(15, 3.0, 2, 3)
    assert statistics.reached(runs[2:], base, "val_loss", higher=False) == statistics.Reached(
        None, None, 0, 1
    )
    assert statistics.reached(base, base, "val_loss", higher=True).steps == 0


def test_the_report_shows_them():
    runs = [*ends("sgd-sai", OURS), *ends("adamw", ADAMW)]
    text = page.build(runs).replace("\u00a0", " ")
    assert "+0.0875 (+0.0113 to +0.1637)" in text.replace("\u2212", "-")
    assert "not reached" in text
    assert "2.1000 ± 0.1080" in text  # mean and standard deviation over seeds
