"""Full-parameter training of a Llama in 3 bytes a parameter, or 2: bf16 weights, 8-bit momentum or none.

    python benchmarks/full_training_in_24_gb.py                         # Llama-2-7B on a GPU: under 24 GB
    python benchmarks/full_training_in_24_gb.py --momentum 0            # 2 bytes a parameter
    python benchmarks/full_training_in_24_gb.py --model small --device cpu

From the config with random weights, at batch 1, with activation checkpointing; nothing is offloaded, nothing
is of low rank; gradients are released one by one. Every step sees the same random tokens, so the loss falls
if the steps are right.

A process for each measurement. Peak: what torch's allocator held at most on a GPU; what the process held at
most above its start on the CPU, where activations of a short context are a small part and malloc is told to
give every freed tensor back.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sgd_sai import SGDSaI, gradient_release
from sgd_sai.files import write_json
from sgd_sai.lab.provenance import command, machine, now
from sgd_sai.memory import Plan, plan

MODELS: dict[str, dict[str, Any]] = {
    "7b": {},  # LlamaConfig's defaults are Llama-2-7B's
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 256,
    },
    "small": {
        "hidden_size": 1024,
        "intermediate_size": 2752,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "vocab_size": 4096,
    },
}


def model_on(device: torch.device, name: str, context: int) -> LlamaForCausalLM:
    """Random bf16 weights, made where they stay."""
    config = LlamaConfig(**MODELS[name], max_position_embeddings=context, use_cache=False)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable()
    return model.train()


class Peak:
    """The bytes that were held at most since the last `reset`, above those held when it was made."""

    def __init__(self, device: torch.device) -> None:
        """Start here."""
        self.device = device
        self.reset()
        self.start = self.bytes()

    def reset(self) -> None:
        """Forget what was held at most."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5", "utf-8")  # Linux: forget the high-water mark

    def bytes(self) -> int:
        """Held at most, all in all."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmHWM in /proc/self/status")

    def held(self) -> int:
        """Held at most, above the start."""
        return self.bytes() - self.start


def optimizer_of(model: LlamaForCausalLM, args: argparse.Namespace) -> torch.optim.Optimizer:
    """SGD-SaI inside backward, or AdamW after it."""
    if args.plain:
        return torch.optim.AdamW(model.parameters(), lr=args.lr, foreach=False)
    optimizer = SGDSaI(
        model.parameters(),
        lr=args.lr,
        momentum=args.momentum,
        state_dtype="8bit" if args.momentum else None,
        rounding="stochastic",
        measure_first=True,
    )
    gradient_release(model, optimizer)
    return optimizer


def planned_for(model: LlamaForCausalLM, args: argparse.Namespace) -> Plan:
    """What `sgd-sai memory` plans for `optimizer_of`."""
    if args.plain:
        return plan(model, "adamw")
    state_dtype = "8bit" if args.momentum else "none"
    return plan(model, "sgd-sai", state_dtype=state_dtype, gradient_release=True)


class Step(NamedTuple):
    """A step: its loss, its seconds, and those until the host had launched all of it."""

    loss: float
    seconds: float
    host_seconds: float


def train(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, context: int, steps: int
) -> Iterator[Step]:
    """Steps on the same random tokens."""
    tokens = torch.randint(model.config.vocab_size, (1, context), device=model.device)
    for _ in range(steps):
        begin = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        launched = time.perf_counter() - begin
        yield Step(loss.item(), time.perf_counter() - begin, launched)


def main() -> int:
    """Train some steps, print the peak next to the plan, write the record."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", choices=MODELS, default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--lr", type=float, help="default: 0.1, with --plain 1e-4")
    parser.add_argument("--momentum", type=float, default=0.9, help="kept in 8 bits; 0: none is kept")
    parser.add_argument("--plain", action="store_true", help="AdamW without release instead, for comparison")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.lr is None:
        args.lr = 1e-4 if args.plain else 0.1
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("--device: there is no GPU; allowed: cpu, with --model small", file=sys.stderr)
        return 2

    if device.type == "cpu" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        thresholds = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | thresholds)
    torch.manual_seed(0)
    tiny = model_on(device, "tiny", 16)  # loads the code of every operation, which is no memory of training
    for _ in train(tiny, optimizer_of(tiny, args), 16, 2):
        pass
    peak = Peak(device)
    model = model_on(device, args.model, args.context)
    params = sum(p.numel() for p in model.parameters())
    planned = planned_for(model, args)
    losses, seconds, peaks = [], [], []
    peak.reset()
    for step in train(model, optimizer_of(model, args), args.context, args.steps):
        losses.append(step.loss)
        seconds.append(round(step.seconds, 3))
        peaks.append(peak.held())
        print(f"loss {step.loss:.3f}, peak {peaks[-1] / 2**30:.2f} GiB, {step.seconds:.1f} s", flush=True)
        peak.reset()
    record = {
        "model": args.model,
        "parameters": params,
        "context": args.context,
        "optimizer": (
            "AdamW, bf16 state"
            if args.plain
            else f"SGD-SaI, {'8-bit' if args.momentum else 'no'} momentum, gradient release"
        ),
        "peak_bytes": max(peaks),
        "peak_bytes_each_step": peaks,
        "peak_bytes_a_parameter": round(max(peaks) / params, 3),
        "planned_bytes": planned.total,
        "planned_bytes_a_parameter": round(planned.total / params, 3),
        "not_in_the_plan": "activations and what a kernel allocates",
        "losses": losses,
        "seconds": seconds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": machine(),
        "versions": {"torch": torch.__version__},
        "date": now(),
        "command": command(),
    }
    print(
        f"{params:,} parameters: peak {max(peaks) / 2**30:.2f} GiB, {max(peaks) / params:.2f} bytes each; "
        f"planned without activations {planned.total / 2**30:.2f} GiB, {planned.total / params:.2f}"
    )
    if args.out is not None:
        write_json(args.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
