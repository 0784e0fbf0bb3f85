"""The record of `sgd-sai gsnr`: a dict as JSON has it, its rows as text, and its sentences."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from sgd_sai.diagnostics import BlockMeasurement, Measurement
from sgd_sai.gsnr import scale
from sgd_sai.tools import output
from sgd_sai.tools.gsnr.gains import Trace
from sgd_sai.tools.workload import Workload

COLUMNS = ("block", "shape", "d", "‖g‖", "σ", "G_snr", "√d", "G/√d", "scale", "SGD-SaI", "AdamW", "flags")
WORDS = ("block", "shape", "flags")


def build(workload: Workload, first: Measurement, loss: float, lr: float) -> dict[str, Any]:
    """Return the record of the first gradient; `lr` is AdamW's."""
    ratio = first.adam_lr_ratio(True)
    blocks = [_row(first, block, lr, ratio) for block in first.blocks]
    return {
        "workload": workload.name,
        "loss": output.number(loss),
        "adamw_lr": lr,
        "lr": {
            "normalize=True": lr * ratio,
            "normalize=False": lr * first.adam_lr_ratio(False),
            'normalize="rms"': lr * first.adam_lr_ratio("rms"),
        },
        **first.normalizers,
        "blocks": blocks,
        "sentences": _sentences(first, lr),
    }


def _row(first: Measurement, block: BlockMeasurement, lr: float, ratio: float) -> dict[str, Any]:
    """One block; None where the gradient gives no number."""
    moments, largest = block.moments, first.normalizers["gsnr_max"]
    row: dict[str, Any] = {
        "name": block.name,
        "shape": list(block.shape),
        "d": moments.n,
        "norm": output.number(moments.norm),
        "sigma": output.number(block.sigma),
        "sqrt_d": math.sqrt(moments.n),
        "flags": first.flags(block),
    }
    names = ("gsnr", "gsnr_by_sqrt_d", "scale", "sgd_sai_update", "adamw_update", "lr")
    if not block.latched:
        return {**row, **dict.fromkeys(names)}
    scaled = scale(block.gsnr, largest)
    values = (
        block.gsnr,
        block.gsnr / math.sqrt(moments.n),
        scaled,
        lr * ratio * scaled * block.rms,
        lr * block.adam_rms,
        lr * first.block_lr_ratio(block, True),
    )
    return {**row, **dict(zip(names, values, strict=True))}


def _sentences(first: Measurement, lr: float) -> list[str]:
    """Return the sentences about the first gradient."""
    latched = first.latched
    off = {block.name: block.gsnr / math.sqrt(block.moments.n) for block in latched}
    near = sum(abs(ratio - 1) <= 0.01 for ratio in off.values())
    farthest = max(off, key=lambda name: abs(math.log(off[name])))
    by_block = [lr * first.block_lr_ratio(block, True) for block in latched]
    said = [
        f"{len(first.blocks)} blocks, {sum(block.moments.n for block in first.blocks):,} elements; the "
        f"largest G_snr is {first.normalizers['gsnr_max']:.4g}.",
        f"G_snr is within 1 % of √d in {near} of {len(latched)} blocks; the farthest from it is "
        f"{farthest}, with {off[farthest]:.3g} √d.",
        f"Over all blocks, the first update of SGD-SaI is as large as AdamW's with lr {lr:.3g} at lr "
        f"{lr * first.adam_lr_ratio(True):.3g}; with normalize=False at "
        f"{lr * first.adam_lr_ratio(False):.3g}, with normalize='rms' at "
        f"{lr * first.adam_lr_ratio('rms'):.3g}.",
        f"Block by block, that lr would lie between {min(by_block):.2g} and {max(by_block):.2g}, median "
        f"{median(by_block):.2g}: where a block's is smaller, SGD-SaI moves it more than AdamW does.",
    ]
    flagged: dict[str, list[str]] = {}
    for block in first.blocks:
        for flag in first.flags(block):
            flagged.setdefault(flag, []).append(block.name)
    for flag, names in flagged.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        said.append(f"Flagged as {flag}: {shown}.")
    return said


def training_sentences(traces: dict[str, Trace]) -> list[str]:
    """Return the sentences about the training: how much G_snr moved, and which optimizers ended early."""
    said = [f"{name} ended early: {trace.error}." for name, trace in traces.items() if trace.error]
    trace = traces["SGD-SaI"]
    seen = {
        name: known
        for name, values in trace.gsnr.items()
        if len(known := [value for value in values if value is not None]) > 1
    }
    if seen:
        spans = {name: max(values) / min(values) for name, values in seen.items()}
        widest = max(spans, key=lambda name: spans[name])
        said.append(
            f"Over {trace.steps[-1]} steps of SGD-SaI, a block's largest G_snr is "
            f"{median(spans.values()):.3f} times its smallest in the median, {spans[widest]:.3g} times "
            f"at most ({widest})."
        )
    return said


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a block of the record as text, in the order of `COLUMNS`."""

    def shown(value: float | None, digits: str = ".3g") -> str:
        return "–" if value is None else format(value, digits)

    return (
        row["name"],
        "×".join(map(str, row["shape"])) or "scalar",
        f"{row['d']:,}",
        shown(row["norm"]),
        shown(row["sigma"]),
        shown(row["gsnr"], ".5g"),
        shown(row["sqrt_d"], ".5g"),
        shown(row["gsnr_by_sqrt_d"], ".4f"),
        shown(row["scale"], ".3f"),
        shown(row["sgd_sai_update"], ".2e"),
        shown(row["adamw_update"], ".2e"),
        ", ".join(row["flags"]),
    )
