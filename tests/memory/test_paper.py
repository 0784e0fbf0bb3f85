"""The planner beside the paper's table of optimizer state."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sgd_sai.cli import main
from sgd_sai.memory import load, plan
from sgd_sai.memory.paper import allocated, compare

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "memory.md").read_text()
#: SGD with momentum had another name when the record was written.
RENAMED = {"sgd-momentum": "sgd"}


def test_the_paper_s_table(capsys):
    rows = list(compare())
    assert len(rows) == 20
    for row in rows:
        state, counted = row.state / 2**30, row.allocated / 2**30
        assert state == plan(load(row.model), row.optimizer).state / 2**30
        if row.verdict == "agrees":
            assert round(state, 2) == row.paper or abs(row.deviation) <= 0.02
        elif row.verdict == "allocator":
            assert round(counted, 2) == row.paper or abs(row.deviation_allocated) <= 0.02
    differs = {(row.model, row.optimizer) for row in rows if row.verdict == "differs"}
    assert differs == {(model, "adam-mini") for model in ("vit-h14", "gpt2-xl", "llama2-7b")}
    for verdict, count in Counter(row.verdict for row in rows).items():
        assert f"- **{verdict}**: {count} of 20" in DOCS
    recorded = json.loads((ROOT / "benchmarks" / "results" / "memory" / "paper.json").read_text())
    for row in recorded["rows"]:
        row["optimizer"] = RENAMED.get(row["optimizer"], row["optimizer"])
    assert main(["memory", "--paper", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == recorded


def test_adam_mini_on_gpt2_is_the_paper_s_half():
    model = load("gpt2")
    share = plan(model, "adam-mini").state / plan(model, "adamw").state
    assert round(100 * share, 1) == 50.1


def test_rounding_of_the_cuda_allocator():
    mib = 2**20
    assert allocated([1]) == 512
    assert allocated([513]) == 1024
    assert allocated([int(29.3 * mib)]) == 30 * mib  # less than 1 MiB is not cut off
    assert allocated([int(306.75 * mib)]) == int(306.75 * mib)
    assert allocated([int(9.75 * mib)] * 2) == 20 * mib  # two in a segment, the second with what is left
