"""The packages of peers: whether they are installed, and importing them without their noise."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

import torch
from torch.optim import Optimizer

#: None, or what is missing and how to get it: the end of the sentence "adam-mini needs …".
Need = Callable[[], str | None]

#: Loggers that warn while torchao is imported, of its libraries for other GPUs and of a deprecated call, and
#: bitsandbytes, of a kernel for some CPUs that no optimizer needs.
_NOISY = ("torchao", "torch.utils._pytree", "bitsandbytes")


def package(module: str, extra: str) -> Need:
    """The need of an import package, which comes with an extra of this project."""

    def missing() -> str | None:
        if importlib.util.find_spec(module) is not None:
            return None
        return f"the package {module!r}: pip install 'sgd-sai[{extra}]'"

    return missing


def torch_muon() -> str | None:
    """The need of a torch that has Muon."""
    if hasattr(torch.optim, "Muon"):
        return None
    return f"torch.optim.Muon, of torch 2.9 or later; this is {torch.__version__}"


def flashoptim() -> str | None:
    """The needs of flashoptim: its kernels run on a GPU alone."""
    if (missing := package("flashoptim", "8bit")()) is not None:
        return missing
    return None if torch.cuda.is_available() else "a GPU of NVIDIA; this machine has none that torch can use"


@contextmanager
def muted() -> Iterator[None]:
    """Drop the warnings that importing peers logs. transformers imports torchao, too, where it is there."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def import_peer(module: str) -> ModuleType:
    """Import a peer's module; what it prints or logs as a warning meanwhile is dropped.

    Raises:
        ImportError: it is not installed, or broken.
    """
    with muted(), redirect_stdout(None):
        return importlib.import_module(module)


def from_package(module: str, name: str) -> Callable[..., Optimizer]:
    """The optimizer `name` of `module`, imported when it is built; what it prints then is dropped."""

    def build(*args: Any, **options: Any) -> Optimizer:
        make: Callable[..., Optimizer] = getattr(import_peer(module), name)
        with redirect_stdout(None):
            return make(*args, **options)

    return build
