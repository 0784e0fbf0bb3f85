"""The time of one optimizer step, next to copying as many bytes as it has to move.

Every round takes one step of each optimizer and one copy, in an order that rotates. `device_ms` is the
device's work alone, `host_ms` what the launches cost Python, measured apart, from an idle device.
"""

from __future__ import annotations

import statistics
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu import shapes
from benchmarks.gpu.contenders import (
    ADAMW,
    BF16,
    FP32,
    LR,
    OTHERS,
    SGD,
    Contender,
    bytes_moved,
    parameters,
)
from benchmarks.gpu.device import Copy, device_ms, free, wall_ms
from benchmarks.gpu.worker import Record

_WARM_UP = 3  # steps: scales, state, compiling
_ROUNDS = {"GPT-2 small": 20, "GPT-2 XL": 10, "Llama-2-7B": 5}
Row = dict[str, Any]


@dataclass(frozen=True)
class Heat:
    """Optimizers that take turns; their states are in memory together."""

    model: str
    dtype: torch.dtype
    contenders: Sequence[Contender]


def heats() -> list[Heat]:
    """What matters most comes first: the stage may be cut off."""
    small, large, llama = _ROUNDS
    bf16, fp32 = torch.bfloat16, torch.float32
    first, rest = [*BF16[:2], BF16[3], ADAMW], [BF16[2], *BF16[4:]]
    return [
        Heat(small, bf16, first),
        Heat(large, bf16, first),
        Heat(small, fp32, [*FP32, ADAMW, *SGD]),
        *(Heat(llama, bf16, [alone]) for alone in (ADAMW, *BF16[:4], SGD[0])),
        Heat(large, fp32, [*FP32, ADAMW, SGD[0]]),
        Heat(small, bf16, [*rest, *SGD]),
        Heat(large, bf16, [*rest, SGD[0]]),
        *(Heat(small, dtype, [alone]) for alone in OTHERS for dtype in (bf16, fp32) if not alone.missing()),
        *(Heat(model, bf16, [alone]) for alone in OTHERS for model in (large, llama) if not alone.missing()),
    ]


@dataclass
class _Entry:
    name: str
    step: Callable[[], object]
    bytes: int
    device_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)


def run(record: Record, device: torch.device, *, dry: bool) -> None:
    """A row for each optimizer, model and dtype."""
    copy = Copy(device)
    adamw: dict[tuple[str, torch.dtype], float] = {}
    for heat in heats():
        for row in _timed(heat, copy, device, dry):
            where = (heat.model, heat.dtype)
            if row["name"] == ADAMW.name and "device_ms" in row:
                adamw[where] = row["device_ms"]
            if "device_ms" in row and where in adamw:
                row["adamw_times"] = round(adamw[where] / row["device_ms"], 3)
            record.add(row)
        free(device)
    for absent in OTHERS:
        if why := absent.missing():
            record.add({"name": absent.name, "absent": why})


def _timed(heat: Heat, copy: Copy, device: torch.device, dry: bool) -> list[Row]:
    said = {"model": heat.model, "dtype": str(heat.dtype).removeprefix("torch.")}
    params = parameters(shapes.of(heat.model, dry=dry), heat.dtype, device)
    entries = [_Entry("copy", copy, copy.moved)]
    failed: list[Row] = []
    for contender in heat.contenders:
        try:
            optimizer = contender.build(params, lr=LR)
            for _ in range(_WARM_UP):
                optimizer.step()
            entries.append(_Entry(contender.name, optimizer.step, bytes_moved(optimizer, params)))
        except Exception as error:  # the others are timed all the same
            failed.append(said | {"name": contender.name} | _reason(error, contender.own))
    if len(entries) == 1:
        return failed
    rounds = 2 if dry else _ROUNDS[heat.model]
    with torch.no_grad():
        _measure(entries, rounds, device)
    rate = copy.bytes_per_ms(entries[0].device_ms)
    timed = [said | _figures(entry, rate, rounds) for entry in entries[1:]]
    # AdamW's first: the others are compared with it.
    return sorted(timed, key=lambda row: row["name"] != ADAMW.name) + failed


def _reason(error: Exception, own: bool) -> Row:
    if own:
        traceback.print_exc(file=sys.stderr)
    return {"error" if own else "absent": f"{type(error).__name__}: {str(error)[:160]}"}


def _measure(entries: Sequence[_Entry], rounds: int, device: torch.device) -> None:
    for turn in range(rounds):
        for place in range(len(entries)):
            entry = entries[(turn + place) % len(entries)]
            entry.host_ms.append(wall_ms(entry.step, device, wait=False))
            # Twice as long as the host needs, within reason.
            head_start = min(max(2 * entry.host_ms[-1], 2.0), 100.0)
            entry.device_ms.append(device_ms(entry.step, device, head_start))


def _figures(entry: _Entry, bytes_per_ms: float, rounds: int) -> Row:
    median = statistics.median(entry.device_ms)
    return {
        "name": entry.name,
        "device_ms": round(median, 4),
        "device_ms_range": [round(min(entry.device_ms), 4), round(max(entry.device_ms), 4)],
        "host_ms": round(statistics.median(entry.host_ms), 3),
        "bytes": entry.bytes,
        "copy_ms": round(entry.bytes / bytes_per_ms, 4),
        "copy_times": round(median * bytes_per_ms / entry.bytes, 3),
        "copy_gb_per_s": round(bytes_per_ms / 1e6, 1),
        "rounds": rounds,
    }
