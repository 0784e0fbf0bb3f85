"""The memory of Llama-2-7B in training, and what low precision costs: memory.md and low-precision.md."""

from __future__ import annotations

import textwrap
from statistics import median

from scripts.tables.markdown import read, table


def llama() -> str:
    """Return the peaks of memory while all of Llama-2-7B was trained on a GPU, next to the plan."""
    rows = [["optimizer", "peak", "bytes a parameter", "plan, without activations"]]
    rows[0] += ["loss, first → last", "s a step"]
    records = [read(f"memory/llama-2-7b-h100{which}") for which in ("-no-momentum", "", "-adamw")]
    for record in records:
        peak, planned = (f"{record[key] / 2**30:.2f} GiB" for key in ("peak_bytes", "planned_bytes"))
        fell = f"{record['losses'][0]:.3g} → {record['losses'][-1]:.2g}"
        numbers = [f"{record['peak_bytes_a_parameter']:.2f}", planned, fell]
        rows.append([record["optimizer"], peak, *numbers, f"{median(record['seconds']):.2f}"])
    return (
        f"{table(*rows)}\n\n{record['parameters']:,} parameters in bf16 from random weights, context "
        f"{record['context']}, batch 1, activation checkpointing; {record['machine']['gpu']}, torch "
        f"{record['versions']['torch']}, {record['date'][:10]}."
    )


def trained() -> str:
    """The peaks of `llama`, in a sentence."""
    without, with_8_bits = (read(f"memory/llama-2-7b-h100{which}") for which in ("-no-momentum", ""))
    peaks = [f"{record['peak_bytes'] / 2**30:.1f} GiB" for record in (without, with_8_bits)]
    said = (
        "All parameters of Llama-2-7B, in bf16 with `gradient_release` and a context of "
        f"{without['context']}, train in {peaks[0]} of GPU memory without momentum and in {peaks[1]} "
        "with momentum in 8 bits "
        f"({without['machine']['gpu'].removeprefix('NVIDIA ')}, {without['date'][:10]})."
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
