"""Fixtures that several test files share."""

from __future__ import annotations

import shutil

import pytest
import torch

from sgd_sai.peers import release as peer

torch.set_num_threads(1)  # pytest-xdist runs one worker per core


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def release():
    """The authors' release 1.0.3, under another name: its import package is called like ours."""
    if peer.missing():
        pytest.skip(f"this test needs {peer.missing()}")
    return peer.module()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, from the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as session:
        found = session.chromium.launch(executable_path=chromium, args=flags)
        yield found
        found.close()
