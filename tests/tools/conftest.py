"""The commands are run where the user's factories lie."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="the lab extra is not installed")
pytest.importorskip("sklearn", reason="the lab extra is not installed")

OWN = Path(__file__).parent


@pytest.fixture(autouse=True)
def in_the_folder_of_the_workloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(OWN)
    monkeypatch.syspath_prepend(str(OWN))
