"""`module:factory`: found in the current folder; one line where it is wrong."""

from __future__ import annotations

import re
import sys

import pytest

from sgd_sai.factory import import_factory


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "own_factories.py").write_text("def seven(): return 7\nnumber = 3\n")
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    sys.modules.pop("own_factories", None)


def test_a_factory_in_the_current_folder():
    assert import_factory("own_factories:seven")() == 7


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("own_factories:number", "own_factories:number: is a int; allowed: a callable without arguments"),
        ("own_factories:gone", "importing own_factories:gone failed: AttributeError: "),
        ("own_nowhere:f", "importing own_nowhere:f failed: ModuleNotFoundError: No module named"),
        ("own_broken:f", "importing own_broken:f failed: RuntimeError: two lines"),
    ],
)
def test_what_is_wrong_is_one_line(given, line):
    with pytest.raises(ValueError, match=rf"\A{re.escape(line)}[^\n]*\Z"):
        import_factory(given)
