"""The options of `SGDSaI`, from the table by which they are checked: docs/api.md."""

from __future__ import annotations

import inspect

from scripts.tables.markdown import table
from sgd_sai import SGDSaI
from sgd_sai.options import OPTIONS


def options() -> str:
    """A row for each option: its name, its default, and the values that are allowed."""
    parameters = inspect.signature(SGDSaI).parameters
    rows = [
        [f"`{name}`", f"`{parameters[name].default!r}`", option.allowed] for name, option in OPTIONS.items()
    ]
    return table(["option", "default", "allowed"], *rows)
