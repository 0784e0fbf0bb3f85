"""The first step: the time of measuring g-SNR, and of the whole step of a fresh optimizer.

Next to both is the time that reading the gradients takes at the rate of a copy. The first call of the process
for a dtype compiles; the others, of which the median counts, do not. Each has a fresh optimizer.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.gpu import shapes
from benchmarks.gpu.contenders import LR, parameters, size
from benchmarks.gpu.device import Copy, device_ms, free, wall_ms
from benchmarks.gpu.worker import Record
from sgd_sai import SGDSaI
from sgd_sai.gsnr import measure
from sgd_sai.kernels.moments import sums
from sgd_sai.kernels.tables import available

#: Milliseconds of the paper's measurement on an A100 of 40 GB (arXiv 2412.11768).
_PAPER_MS = {"ViT-S": 13.7, "ViT-H": 106.0, "GPT-2 XL": 353.8}
_WARM = 5


def run(record: Record, device: torch.device, *, dry: bool) -> None:
    """A row for each model and dtype of the gradients."""
    rate = Copy(device).bytes_per_ms()
    seen: set[torch.dtype] = set()
    for model in _PAPER_MS:
        for dtype in (torch.float32, torch.bfloat16):
            row = _row(model, dtype, rate, device, dry=dry)
            record.add(row | {"first_call_compiles": dtype not in seen})
            seen.add(dtype)
            free(device)


def _row(
    model: str, dtype: torch.dtype, bytes_per_ms: float, device: torch.device, *, dry: bool
) -> dict[str, Any]:
    params = parameters(shapes.of(model, dry=dry), dtype, device)
    grads = [param.grad for param in params if param.grad is not None]

    def measured() -> float:
        return wall_ms(lambda: measure([[grad] for grad in grads]), device, wait=True)

    def stepped() -> float:
        return wall_ms(SGDSaI(params, lr=LR).step, device, wait=True)

    first, *warm = [measured() for _ in range(1 + _WARM)]
    first_step, *warm_steps = [stepped() for _ in range(1 + _WARM)]
    kernels = None
    if available(device):  # what the device does, while the host has already launched it
        kernels = statistics.median(device_ms(partial(sums, grads), device, 30.0) for _ in range(_WARM))
    read = size(grads) / bytes_per_ms
    return {
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
        "tensors": len(grads),
        "measure_ms": round(statistics.median(warm), 3),
        "measure_first_call_ms": round(first, 3),
        "step_ms": round(statistics.median(warm_steps), 3),
        "step_first_call_ms": round(first_step, 3),
        "read_ms": round(read, 3),
        "read_times": round(statistics.median(warm) / read, 2),
        "kernels_ms": kernels,
        "paper_a100_ms": _PAPER_MS[model],
    }
