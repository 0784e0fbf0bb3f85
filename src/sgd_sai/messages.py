"""How messages name parameters, and where warnings point to."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_FOLDERS = {Path(file).parent for file in (__file__, torch.__file__)}
# With torch all that is installed beside it, such as Lightning.
_FOLDERS |= {folder.parent for folder in _FOLDERS if folder.parent.name in ("site-packages", "dist-packages")}
_LIBRARIES = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)


def name_of(group: dict[str, Any], index: int) -> str:
    """How a message calls a parameter: its name where the optimizer was given names, else its place."""
    if (name := given_name(group, index)) is not None:
        return name
    return f"parameter {index} of its group, of {shape_of(group['params'][index])}"


def given_name(group: dict[str, Any], index: int) -> str | None:
    """The same where the optimizer was given names, else None: ranks may have others at a place."""
    names = group.get("param_names", ())
    # A parameter may have been appended to the list of a group.
    return f"parameter {names[index]!r}" if index < len(names) else None


def shape_of(param: Tensor) -> str:
    """A parameter's shape in words; that of a lazy module has none before its first forward pass."""
    return "a shape that is not known yet" if is_lazy(param) else f"shape {tuple(param.shape)}"


def listed(names: Iterable[str]) -> str:
    """The first eight of the names, in order, for a message."""
    names = [name if name.isprintable() else repr(name) for name in sorted(names)]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def warn(message: str) -> None:
    """A UserWarning that points to the line of the user's program that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        if frame.f_globals.get("__name__") == "__main__":  # an installed program is the user's too
            break
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
