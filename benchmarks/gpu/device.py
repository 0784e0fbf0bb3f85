"""What is done in one way on a GPU, and in another on the CPU of a dry run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_CYCLES_PER_MS = 2_000_000  # of a spinning kernel; at least a millisecond on any GPU so far


def named(*, dry: bool) -> torch.device:
    """The GPU, or in a dry run the CPU."""
    return torch.device("cpu") if dry else torch.device("cuda", torch.cuda.current_device())


def sync(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back the memory that nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wall_ms(call: Callable[[], object], device: torch.device, *, wait: bool) -> float:
    """Milliseconds from an idle device until `call` returns, or with `wait` until the device is done."""
    sync(device)
    begin = time.perf_counter()
    call()
    if wait:
        sync(device)
    return 1e3 * (time.perf_counter() - begin)


def device_ms(call: Callable[[], object], device: torch.device, head_start_ms: float) -> float:
    """Milliseconds of the device's work alone.

    A kernel that spins for `head_start_ms` keeps the GPU busy until the host has launched all of it.
    """
    if device.type != "cuda":
        return wall_ms(call, device, wait=True)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    torch.cuda._sleep(int(head_start_ms * _CYCLES_PER_MS))  # type: ignore[no-untyped-call]
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(stop))


class Copy:
    """A large copy within the device: the rate at which bytes can be moved."""

    def __init__(self, device: torch.device) -> None:
        """Two buffers, in a dry run small ones."""
        size = 2**30 if device.type == "cuda" else 2**20
        self._source, self._target = (torch.randn(size // 4, device=device) for _ in range(2))
        self.moved = 2 * size  # read, and written
        self._device = device

    def __call__(self) -> Tensor:
        """Copy once."""
        return self._target.copy_(self._source)

    def bytes_per_ms(self, times: Sequence[float] = ()) -> float:
        """The median rate of the given times of copies, or of a few that are done now."""
        now = times or [device_ms(self, self._device, 1.0) for _ in range(10)]
        return self.moved / statistics.median(now)
