"""All parameters of Llama-2-7B trained on one GPU, in 16 GB without momentum, in 24 GB with it in 8 bits."""

from __future__ import annotations

import statistics
from argparse import Namespace
from functools import partial
from typing import Any

import torch

from benchmarks.full_training_in_24_gb import Peak, model_on, optimizer_of, planned_for, train
from benchmarks.gpu.device import free, wall_ms
from benchmarks.gpu.worker import Record
from sgd_sai import SGDSaI

_VARIANTS = {"no momentum": (0.0, 16e9), "8-bit momentum": (0.9, 24e9)}  # and the bytes to stay below
_LR = 1.0


def run(record: Record, device: torch.device, *, dry: bool) -> None:
    """A row for each variant; the model is made anew for each, on the GPU."""
    name, context, steps = ("tiny", 16, 5) if dry else ("7b", 1024, 20)
    record.note(forward_and_backward_ms=_without_optimizer(name, context, device))
    free(device)
    for variant, (momentum, goal) in _VARIANTS.items():
        given = Namespace(plain=False, lr=_LR, momentum=momentum)
        torch.manual_seed(0)
        tiny = model_on(device, "tiny", 16)  # loads the code of every operation
        for _ in train(tiny, optimizer_of(tiny, given), 16, 2):
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
    optimizer = optimizer_of(model, given)
    taken = list(train(model, optimizer, context, steps))
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
        "host_us_a_parameter": _host_us(optimizer, device),
        "lr": given.lr,
        "losses": [round(step.loss, 4) for step in taken],
        "seconds": [round(step.seconds, 3) for step in taken],
    }


def _host_us(optimizer: SGDSaI, device: torch.device) -> float:
    """Microseconds of the host for what backward calls when the gradient of a parameter is there."""
    taken = []
    for param in optimizer.param_groups[0]["params"]:
        for hook in param._post_accumulate_grad_hooks.values():
            param.grad = torch.zeros_like(param)
            taken.append(1e3 * wall_ms(partial(hook, param), device, wait=False))
            param.grad = None
    return round(statistics.median(taken), 1)


def _without_optimizer(name: str, context: int, device: torch.device) -> float:
    """Milliseconds of forward and backward, with activation checkpointing; gradients are freed after it."""
    model = model_on(device, name, context)
    tokens = torch.randint(model.config.vocab_size, (1, context), device=device)

    def passes() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        model.zero_grad()

    return round(statistics.median(wall_ms(passes, device, wait=True) for _ in range(8)), 1)
