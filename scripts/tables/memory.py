"""The memory of Llama-2-7B in training, and what low precision costs: memory.md and low-precision.md."""

from __future__ import annotations

import textwrap
from statistics import median

from scripts.tables.markdown import read, table
from scripts.tables.speed import measured_on


def llama() -> str:
    """Return the peaks of memory while all of Llama-2-7B was trained on a GPU, next to the plan."""
    rows = [["optimizer", "peak", "bytes a parameter", "plan, without activations"]]
    rows[0] += ["loss, first → last", "s a step"]
    ours = read("gpu/llama")
    plain = read("memory/llama-2-7b-h100-adamw")
    named = {f"SGD-SaI, {row['variant']}, gradient release": row for row in ours["rows"]}
    for name, row in {**named, plain["optimizer"]: plain}.items():
        peak, planned = (f"{row[key] / 2**30:.2f} GiB" for key in ("peak_bytes", "planned_bytes"))
        fell = f"{row['losses'][0]:.3g} → {row['losses'][-1]:.2g}"
        each = f"{row['peak_bytes'] / row['parameters']:.2f}"
        rows.append([name, peak, each, planned, fell, f"{median(row['seconds'][1:]):.2f}"])
    return (
        f"{table(*rows)}\n\n{row['parameters']:,} parameters in bf16 from random weights, context "
        f"{row['context']}, batch 1, activation checkpointing. {measured_on(ours)}. Forward and backward "
        f"alone take {ours['forward_and_backward_ms'] / 1e3:.2f} s."
    )


def trained() -> str:
    """The peaks of `llama`, in a sentence."""
    record = read("gpu/llama")
    peaks = [f"{row['peak_bytes'] / 2**30:.1f} GiB" for row in record["rows"]]
    said = (
        "All parameters of Llama-2-7B, in bf16 with `gradient_release` and a context of "
        f"{record['rows'][0]['context']}, train in {peaks[0]} of GPU memory without momentum and in "
        f"{peaks[1]} with momentum in 8 bits "
        f"({record['machine']['gpu'].removeprefix('NVIDIA ')}, {record['date'][:10]}, `make gpu`)."
    )
    return textwrap.fill(said, 118)


def precisions() -> str:
    """Return the record of `benchmarks/low_precision.py`."""
    record = read("low-precision")
    losses = record["val_loss"]
    seeds = [seed for seed in losses["float32"] if all(seed in of_name for of_name in losses.values())]
    rows = [["parameters, rounding, momentum", *(f"seed {seed}" for seed in seeds), "mean − float32"]]
    for name, of_seed in losses.items():
        difference = sum(of_seed[seed] - losses["float32"][seed] for seed in seeds) / len(seeds)
        rows.append([name, *(f"{of_seed[seed]:.4f}" for seed in seeds), f"{difference:+.4f}"])
    return (
        f"{table(*rows)}\n\nValidation loss in nats per byte after {record['steps']} steps; "
        f"{record['machine']['processor']}, torch {record['torch']}, {record['date'][:10]}: "
        f"`{record['command']}`"
    )
