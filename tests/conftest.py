"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # pytest-xdist runs one worker per core

PEERS = Path(__file__).parent.parent / ".peers"


@pytest.fixture(scope="session")
def release():
    """The authors' release 1.0.3, under another name: its import package is called like ours."""
    source = PEERS / "sgd_sai" / "__init__.py"
    if not source.is_file():
        pytest.skip("release 1.0.3 is not in .peers/: `make test` installs it there")
    spec = importlib.util.spec_from_file_location(
        "sgd_sai_release", source, submodule_search_locations=[str(source.parent)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
