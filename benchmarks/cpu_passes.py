"""By what a step on the CPU is limited: each of its operations, and whole steps, beside the step in float32.

    python benchmarks/cpu_passes.py
    python benchmarks/cpu_passes.py --threads 2 --rounds 31

Operations run on the buffers of a piece, as in `sgd_sai.update.widened`; θ and g come from memory, a fresh
piece each time. All is timed in turns in one process, with decay. The unit is the step in float32, whose
momentum has 32 bits: for an operation the part of that step's time that it would take by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch

from sgd_sai import SGDSaI
from sgd_sai.quantized import BLOCK
from sgd_sai.update.fused_sgd import descend

SHAPE, TENSORS = (2048, 2048), 8
PIECE = 1024 * BLOCK
LR, DECAY = 1e-4, 1e-2  # 1 − λη is not 1 in float32: decay is not left out


def operations() -> dict[str, Callable[[], Any]]:
    """What the steps with momentum in 16 and in 8 bits are made of, each on one piece."""
    m, u, level, drawn, squares = (torch.rand(PIECE) for _ in range(5))
    bits, held = m.view(torch.int32), drawn.view(torch.int32)
    narrow, codes = m.bfloat16(), torch.randint(-127, 128, (PIECE,), dtype=torch.int8)
    q, size = u.view(torch.int16).view(2, -1)
    rows, row = u.view(-1, BLOCK), torch.ones(PIECE // BLOCK, 1)
    absmax = torch.empty(PIECE // BLOCK)
    θ, g = (cycle(torch.rand(64 * PIECE).split(PIECE)) for _ in range(2))
    return {
        "16 bits: to float32": lambda: m.copy_(narrow),
        "16 bits: + random bits": lambda: bits.add_(held),
        "16 bits: the upper half": lambda: bits.bitwise_right_shift_(16),
        "16 bits: back": lambda: narrow.view(torch.int16).copy_(bits),
        "8 bits: codes to int16": lambda: q.copy_(codes),
        "8 bits: |q|": lambda: torch.abs(q, out=size),
        "8 bits: q |q|": lambda: q.mul_(size),
        "8 bits: to float32": lambda: m.copy_(q),
        "8 bits: × a row's scale": lambda: rows.mul_(row),
        "8 bits: |m|": lambda: torch.abs(m, out=u),
        "8 bits: the largest of a row": lambda: torch.amax(rows, dim=1, out=absmax),
        "8 bits: × 127² over the largest": lambda: rows.mul_(row),
        "8 bits: √": lambda: torch.sqrt(squares, out=level),
        "8 bits: floor": lambda: level.floor_(),
        "8 bits: − floor²": lambda: u.addcmul_(squares, squares, value=-1),
        "8 bits: − 2 floor × random": lambda: u.addcmul_(squares, drawn, value=-2),
        "8 bits: > random": lambda: torch.gt(squares, drawn, out=u),
        "8 bits: + 1 if so": lambda: level.add_(squares),
        "8 bits: sign": lambda: m.sign_(),
        "8 bits: × sign": lambda: level.mul_(m),
        "8 bits: to int8": lambda: codes.copy_(level),
        "all: lerp, g from memory": lambda: m.lerp_(next(g), 0.1),
        "all: θ, from and to memory": lambda: descend(next(θ), m, LR, LR * DECAY),
    }


def steps() -> dict[str, Callable[[], Any]]:
    """Whole steps, plain and compiled, on the same parameters and gradients."""
    params = [torch.nn.Parameter(torch.randn(SHAPE)) for _ in range(TENSORS)]
    for param in params:
        param.grad = torch.randn(SHAPE) * 0.02
    found: dict[str, Callable[[], Any]] = {}
    for name, state in {"float32": None, "bfloat16": torch.bfloat16, "8 bits": "8bit"}.items():
        for compiled in (False, True):
            optimizer = SGDSaI(params, lr=LR, weight_decay=DECAY, state_dtype=state)  # type: ignore[arg-type]
            optimizer.step()
            found[f"step: momentum {name}{', compiled' * compiled}"] = (
                torch.compile(optimizer.step) if compiled else optimizer.step
            )
    return found


def timed(runs: dict[str, Callable[[], Any]], rounds: int, times: int) -> dict[str, list[float]]:
    """Seconds of each run, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            begin = time.perf_counter()
            for _ in range(times):
                run()
            if turn >= 2:
                seconds[name].append((time.perf_counter() - begin) / times)
    return seconds


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    whole = timed(steps(), args.rounds, 1)
    unit = whole["step: momentum float32"]
    elements = TENSORS * SHAPE[0] * SHAPE[1]
    with torch.no_grad():
        parts = timed(operations(), args.rounds, 8)
    print(f"{'':36}  ns an element  × the float32 step")
    for name, seconds in (parts | whole).items():
        of = elements if name in whole else PIECE
        ns = [1e9 * one / of for one in seconds]
        of_step = statistics.median(n / (1e9 * one / elements) for n, one in zip(ns, unit, strict=True))
        print(f"{name:36}  {statistics.median(ns):13.3f}  {of_step:18.2f}")


if __name__ == "__main__":
    main()
