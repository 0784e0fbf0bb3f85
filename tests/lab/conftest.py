"""Runs that several test files read, and short pre-training."""

from __future__ import annotations

import os
import tempfile

import pytest

pytest.importorskip("transformers", reason="the lab extra is not installed")

from lab_commands import compare

from sgd_sai.cli import main
from sgd_sai.files import locked
from sgd_sai.lab.tasks import pretrained


@pytest.fixture(scope="session")
def runs(tmp_path_factory, request):
    """Six short runs of a real model, three optimizers and two seeds, with their report.

    The first of xdist's workers that asks for them trains, the others wait for it.
    """
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # which all workers share
    out = folder / "study"
    with locked(folder / "study.lock"):
        if not (out / "report.html").exists():
            assert main(compare(out, "--seeds", "0,1", steps=30, optimizer="sgd-sai,adamw,sgd", lr=None)) == 0
    return out


@pytest.fixture(scope="session", autouse=True)
def _short_pre_training():
    """Bases are trained for some steps only, into a cache of the test's own."""
    weights = pretrained.weights
    before = os.environ.get("SGD_SAI_CACHE")
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGD_SAI_CACHE", cache)
        patch.setattr(pretrained, "weights", lambda name, problem, steps, lr: weights(name, problem, 20, lr))
        yield
    assert os.environ.get("SGD_SAI_CACHE") == before
