"""The authors' release 1.0.3, under another name: its import package is called like ours."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

_NAME = "sgd_sai_release_1_0_3"
_FOLDER = ".peers"  # in the current folder, or beside src/


def source() -> Path | None:
    """The release's `__init__.py`, or None where it is not installed."""
    roots = (Path.cwd(), Path(__file__).parents[3])
    files = (root / _FOLDER / "sgd_sai" / "__init__.py" for root in roots)
    return next((file for file in files if file.is_file()), None)


def missing() -> str | None:
    """None, or how to get it: a `sgd_sai.peers.imports.Need`."""
    if source() is not None:
        return None
    return f"the authors' release in {_FOLDER}/: pip install --no-deps --target {_FOLDER} sgd-sai==1.0.3"


@cache
def module() -> ModuleType:
    """The release's package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    file = source()
    if file is None:
        raise ModuleNotFoundError(f"release 1.0.3 is {missing()}", name=_NAME)
    spec = importlib.util.spec_from_file_location(_NAME, file, submodule_search_locations=[str(file.parent)])
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def build(*args: Any, **options: Any) -> Optimizer:
    """Its `SGD_sai`, without the banner that it prints at its first step."""
    return _quiet()(*args, **options)


@cache
def _quiet() -> type[Optimizer]:
    class Quiet(module().SGD_sai):  # type: ignore[misc]
        def warmup_step(self, closure: Any = None) -> Any:
            with redirect_stdout(None):
                return super().warmup_step(closure)

    return Quiet
