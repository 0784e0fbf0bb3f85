"""Fixtures that several test files share."""

from __future__ import annotations

import os

# Read once, when torch is imported, here and in each process that a test starts. pytest-xdist runs one worker
# per core, so one thread is for each of them: threads that wait for each other on a busy machine are several
# times as slow as one. Where a test asks for two, the one that waits is not to keep the other from its core.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import shutil
from typing import Any

import pytest
import torch

from sgd_sai.peers import release as peer

torch.set_num_threads(1)

#: Milliseconds after which a browser hangs: many, since all takes long on a busy machine.
PATIENCE = 600_000


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


class Browser:
    """A browser whose pages are patient."""

    def __init__(self, launched: Any) -> None:
        self._launched = launched

    def new_page(self, **options: Any) -> Any:
        page = self._launched.new_page(**options)
        page.set_default_timeout(PATIENCE)
        return page


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, from the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as session:
        found = session.chromium.launch(executable_path=chromium, args=flags, timeout=PATIENCE)
        yield Browser(found)
        found.close()
