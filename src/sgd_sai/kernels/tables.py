"""What the kernels have in common: where they run, and the tables by which they find tensors.

A kernel moves or reads all tensors of a kind in one launch. Its programs find their work by a table of chunks
of one size, and the tensors by a table of addresses, so that a model's thousands of tiny tensors cost what
their bytes cost. Tables are uploaded from pinned memory when something has changed; nothing waits for the
device.

Triton comes with torch on Linux; without a GPU its interpreter runs the same code (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache as once
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from sgd_sai.messages import warn


def available(device: torch.device) -> bool:
    """True if kernels can run there: Triton is installed, and the device is a GPU that it compiles for.

    The first question about a GPU compiles the smallest kernel, and warns where that fails. The CPU counts
    while TRITON_INTERPRET=1.
    """
    if not _installed():
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda" and _compiles_for(device)


@once
def _installed() -> bool:
    return find_spec("triton") is not None


@once
def _compiles_for(device: torch.device) -> bool:
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if (why := failure(device)) is None:
        return True
    warn(
        f"SGDSaI: Triton cannot compile a kernel for {device}: {why}. Steps take torch's own operations "
        "instead: the results are the same, but a step takes longer. Triton needs a C compiler, by the "
        "variable CC or on the PATH; foreach=True asks for no kernel"
    )
    return False


def failure(device: torch.device) -> str | None:
    """Why Triton can run no kernel on a device, in one line; None if it can."""
    try:
        written = torch.zeros(1, dtype=torch.int32, device=device)
        with on(device):
            import_module("sgd_sai.kernels.probe").set_to_one[(1,)](written)
    except Exception as error:  # it depends on the machine what is raised
        said = str(error).strip().splitlines()
        return f"{type(error).__name__}: {said[0] if said else 'no reason given'}"
    return None


def on(device: torch.device) -> AbstractContextManager[object]:
    """The device as that of launches; to change it takes time, and only machines of several GPUs need it."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


class Table:
    """Numbers that a kernel reads, uploaded again only when they have changed."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """An empty one."""
        self.dtype = dtype
        self.device = device
        self.values: Sequence[float] = ()
        self.tensor: Tensor

    def of(self, values: Sequence[float]) -> Tensor:
        """The numbers on the device."""
        if values != self.values:
            # A new tensor each time: a captured graph may go on reading the old one.
            self.tensor = upload(torch.tensor(values, dtype=self.dtype, device="cpu"), self.device)
            self.values = values
        return self.tensor


def chunks_of(sizes: Tensor, chunk: int) -> Tensor:
    """The number of a tensor and that of a chunk of it, for every chunk: int32 (chunks, 2)."""
    counts = (sizes + chunk - 1) // chunk
    tensors = torch.arange(len(sizes), device="cpu").repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return torch.stack((tensors, torch.arange(len(tensors), device="cpu") - first[tensors]), dim=1).int()


def order(tensor: Tensor) -> list[int]:
    """The order of the elements in memory; a dim of one element has no part in it."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def upload(table: Tensor, device: torch.device) -> Tensor:
    """The table on the device, without waiting for it."""
    if device.type == "cpu":
        return table
    if capturing(device):
        raise RuntimeError(
            "SGDSaI: the tables of this step have changed, and cannot be uploaded in a CUDA graph capture; "
            "allowed: the options and the gradients' addresses of the step before "
            "(zero_grad(set_to_none=False) keeps them), and lr as a tensor on the GPU"
        )
    return table.pin_memory().to(device, non_blocking=True)


def capturing(device: torch.device) -> bool:
    """True while a CUDA graph is captured on that device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
