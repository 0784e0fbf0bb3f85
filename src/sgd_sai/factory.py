"""The user's own `module:factory`, a callable without arguments, as commands take it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def import_factory(given: str) -> Callable[[], Any]:
    """Import `module:factory`; the module is looked for in the current folder, too.

    Raises:
        ValueError: one line: the module or the name cannot be imported, or is not callable.
    """
    module, _, name = given.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module is the user's code, which may raise anything
        raise ValueError(f"importing {given} failed: {one_line(error)}") from error
    if not callable(factory):
        raise ValueError(f"{given}: is a {type(factory).__name__}; allowed: a callable without arguments")
    return factory  # type: ignore[no-any-return]


def one_line(error: BaseException) -> str:
    """The type and the message of an error, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
