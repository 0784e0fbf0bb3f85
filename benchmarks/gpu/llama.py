"""All parameters of Llama-2-7B trained on one GPU, in 16 GB without momentum, in 24 GB with it in 8 bits."""

from __future__ import annotations

import statistics
from argparse import Namespace
from typing import Any

import torch

from benchmarks.full_training_in_24_gb import Peak, model_on, planned_for, train
from benchmarks.gpu.device import free
from benchmarks.gpu.worker import Record

_VARIANTS = {"no momentum": (0.0, 16e9), "8-bit momentum": (0.9, 24e9)}  # and the bytes to stay below
_LR = 1.0


def run(record: Record, device: torch.device, *, dry: bool) -> None:
    """A row for each variant; the model is made anew for each, on the GPU."""
    name, context, steps = ("tiny", 16, 5) if dry else ("7b", 1024, 20)
    for variant, (momentum, goal) in _VARIANTS.items():
        given = Namespace(plain=False, lr=_LR, momentum=momentum)
        torch.manual_seed(0)
        tiny = model_on(device, "tiny", 16)  # loads the code of every operation
        for _ in train(tiny, given, 16, 2):
            pass
        del tiny
        free(device)
        row = _trained(name, context, steps, given, device)
        record.add({"variant": variant, "goal_bytes": int(goal)} | row)
        free(device)


def _trained(name: str, context: int, steps: int, given: Namespace, device: torch.device) -> dict[str, Any]:
    peak = Peak(device)
    model = model_on(device, name, context)
    planned = planned_for(model, given)
    peak.reset()
    taken = list(train(model, given, context, steps))
    steady = statistics.median(step.seconds for step in taken[3:])
    # Without a GPU there is no allocator that counts.
    allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak.bytes()
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    return {
        "model": name,
        "parameters": sum(param.numel() for param in model.parameters()),
        "context": context,
        "peak_bytes": allocated,
        "reserved_bytes": reserved,
        "planned_bytes": planned.total,
        "not_in_the_plan": "activations and what a kernel allocates",
        "tokens_per_second": round(context / steady, 1),
        "step_ms": round(1e3 * steady, 1),
        "host_ms": round(1e3 * statistics.median(step.host_seconds for step in taken[3:]), 1),
        "lr": given.lr,
        "losses": [round(step.loss, 4) for step in taken],
        "seconds": [round(step.seconds, 3) for step in taken],
    }
