"""How long one optimizer step takes on a GPU, next to copying as many bytes as it has to move.

    python benchmarks/gpu_step.py --rounds 50 --out benchmarks/results/gpu_step.json

GPT-2-small's 148 tensors. Every round takes one step of each optimizer and one copy, in an order that
rotates. A spinning kernel in front keeps the GPU busy until the host has launched everything, so that
`device_ms` is the work alone; `host_ms` is what the launches cost Python. `copy_ms` is what a copy takes
that reads and writes as many bytes together. Needs torch and triton alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgd_sai import SGDSaI
from sgd_sai.cli import CommandError
from sgd_sai.files import write_json
from sgd_sai.lab.provenance import command, machine, now
from sgd_sai.update import reference, triton_launch

DTYPES = (torch.float32, torch.bfloat16)
WARM_UP = 5  # rounds: scales, state, compiling
HEAD_START = 40_000_000  # cycles of the spinning kernel: about 20 ms
COPY = 2**30  # bytes read, and as many written
OPTIONS: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 0.1}


def gpt2_small() -> list[tuple[int, ...]]:
    """The shapes of GPT-2 small: 12 layers of width 768, 124 439 808 parameters."""
    vocabulary, context, width, layers = 50257, 1024, 768, 12
    norm = [(width,), (width,)]

    def linear(inputs: int, outputs: int) -> list[tuple[int, ...]]:
        return [(inputs, outputs), (outputs,)]

    attention = [*norm, *linear(width, 3 * width), *linear(width, width)]
    mlp = [*norm, *linear(width, 4 * width), *linear(4 * width, width)]
    return [(vocabulary, width), (context, width), *(attention + mlp) * layers, *norm]


@dataclass
class Contender:
    """Something that is timed, and the bytes that it must move at least, once its state is there."""

    name: str
    step: Callable[[], object]
    bytes_moved: Callable[[], int]
    device_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)


def parameters(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random parameters with random gradients."""
    generator = torch.Generator(device).manual_seed(0)
    params, grads = (
        [torch.randn(s, generator=generator, device=device).mul_(0.02).to(dtype) for s in shapes]
        for _ in range(2)
    )
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return params


def contenders(params: list[Tensor]) -> Iterator[Contender]:
    """Each optimizer over the same parameters and gradients, with its own state."""
    grads = [param.grad for param in params if param.grad is not None]
    dtype = params[0].dtype
    for m_dtype in dict.fromkeys((torch.float32, dtype)):
        momenta = [grad.to(m_dtype, copy=True) for grad in grads]
        yield Contender(
            f"SGD-SaI's kernel, {name_of(m_dtype)} m",
            partial(
                triton_launch.update, params, grads, momenta, [1.0] * len(params),
                **OPTIONS, maximize=False, cache={},
            ),
            partial(streams, params, grads, momenta),
        )  # fmt: skip
    optimizers: dict[str, torch.optim.Optimizer] = {
        "SGDSaI": SGDSaI(params, **OPTIONS),
        "torch SGD, fused": torch.optim.SGD(params, **OPTIONS, fused=True),
        "torch AdamW, fused": torch.optim.AdamW(params, lr=OPTIONS["lr"], fused=True),
    }
    if find_spec("optimi") and params[0].is_cuda:
        import optimi

        optimizers["optimi SGD, Triton"] = optimi.SGD(
            params, **OPTIONS, dampening=True, decouple_wd=True, kahan_sum=False, triton=True
        )
    for name, optimizer in optimizers.items():
        yield Contender(name, optimizer.step, partial(streams_of, optimizer, params, grads))


def streams(params: Sequence[Tensor], grads: Sequence[Tensor], state: Sequence[Tensor]) -> int:
    """Bytes of a step: parameters and state are read and written, gradients are read."""
    return 2 * size(params) + size(grads) + 2 * size(state)


def streams_of(optimizer: torch.optim.Optimizer, params: list[Tensor], grads: list[Tensor]) -> int:
    """As `streams`, of the state tensors that are as large as their parameter."""
    state = [
        value
        for param in params
        for value in optimizer.state[param].values()
        if isinstance(value, Tensor) and value.shape == param.shape
    ]
    return streams(params, grads, state)


def size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(dtype: torch.dtype, device: torch.device) -> None:
    """Raise unless the kernel's step is the reference's: a wrong one is not worth timing."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(3,), (2049, 7), (300, 231)]
    ours = [
        [torch.randn(s, generator=generator, device=device).to(d) for s in shapes]
        for d in (dtype, dtype, torch.float32)
    ]
    theirs = [[tensor.clone() for tensor in of_kind] for of_kind in ours]
    for way, (params, grads, momenta) in ((triton_launch, ours), (reference, theirs)):
        way.update(
            params, grads, momenta, [0.5] * len(shapes),
            lr=0.1, momentum=0.9, weight_decay=0.1, maximize=False,
        )  # fmt: skip
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours[0], theirs[0], rtol=4 * eps, atol=4e-7)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-6, atol=4e-7)


def measure(entries: list[Contender], rounds: int) -> None:
    """Fill in the times of every contender, in milliseconds."""
    for turn in range(-WARM_UP, rounds):
        for place in range(len(entries)):
            entry = entries[(turn + place) % len(entries)]
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(HEAD_START)
            start.record()
            began = time.perf_counter()
            entry.step()
            host = time.perf_counter() - began
            stop.record()
            torch.cuda.synchronize()
            if turn >= 0:
                entry.device_ms.append(start.elapsed_time(stop))
                entry.host_ms.append(1e3 * host)


def run(dtype: torch.dtype, device: torch.device, rounds: int) -> dict[str, Any]:
    """The times of all contenders for parameters of this dtype."""
    check(dtype, device)
    source, target = (torch.zeros(COPY // 4, device=device) for _ in range(2))
    source.normal_()
    copy = Contender("copy", partial(target.copy_, source), lambda: 2 * COPY)
    entries = [copy, *contenders(parameters(gpt2_small(), dtype, device))]
    with torch.no_grad():
        measure(entries, rounds)
    bytes_per_ms = copy.bytes_moved() / statistics.median(copy.device_ms)
    results: dict[str, Any] = {
        entry.name: {
            "device_ms": spread(entry.device_ms),
            "host_ms": spread(entry.host_ms),
            "bytes": entry.bytes_moved(),
            "copy_ms": entry.bytes_moved() / bytes_per_ms,
        }
        for entry in entries
    }
    print(f"{name_of(dtype):<28}{'device ms':>10}{'copy ms':>10}{'ratio':>7}{'host ms':>10}")
    for name, result in results.items():
        device_ms, floor = result["device_ms"]["median"], result["copy_ms"]
        print(
            f"{name:<28}{device_ms:>10.3f}{floor:>10.3f}{device_ms / floor:>7.2f}"
            f"{result['host_ms']['median']:>10.3f}"
        )
    return {"dtype": name_of(dtype), "copy_gb_per_s": bytes_per_ms / 1e6, "results": results}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def versions() -> dict[str, str | None]:
    packages = ("torch", "triton", "torch-optimi")
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **{name: installed[name] for name in packages if name in installed},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time one optimizer step on a GPU.")
    parser.add_argument("--rounds", type=int, default=50, help="timed steps of each (default: 50)")
    parser.add_argument("--out", type=Path, help="a JSON file for the record")
    args = parser.parse_args(argv)
    try:
        if args.rounds < 1:
            raise CommandError(f"--rounds: given {args.rounds}; allowed: an integer ≥ 1")
        if not torch.cuda.is_available():
            raise CommandError("this machine has no GPU that torch can use; nothing was measured")
        device = torch.device("cuda", torch.cuda.current_device())
        if not triton_launch.available(device):
            raise CommandError("the kernel needs triton and a GPU of compute capability 8.0 or newer")
    except CommandError as error:
        print(f"gpu_step: {error}", file=sys.stderr)
        return 2
    record = {
        "command": f"python benchmarks/{command()}",
        "date": now(),
        "machine": {**machine(), "gpu": torch.cuda.get_device_name(device)},
        "versions": versions(),
        "model": "GPT-2 small",
        "elements": sum(torch.Size(shape).numel() for shape in gpt2_small()),
        "rounds": args.rounds,
        "dtypes": [run(dtype, device, args.rounds) for dtype in DTYPES],
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
