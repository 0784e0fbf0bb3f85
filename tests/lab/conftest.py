"""Runs that several test files read."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the lab extra is not installed")

from lab_commands import compare

from sgd_sai.cli import main


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Six short runs of a real model, three optimizers and two seeds, with their report."""
    out = tmp_path_factory.mktemp("runs") / "study"
    assert main(compare(out, "--seeds", "0,1", steps=30, optimizer="sgd-sai,adamw,sgd", lr=None)) == 0
    return out
