"""Interleaved rounds: every contender takes one step a round, so that a busy machine is busy for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Memory streams of a step of SGD-SaI: read θ, g, m; write θ, m.
STREAMS = 5


@dataclass
class Series:
    """The milliseconds of one contender, round by round."""

    name: str
    step: Callable[[], object]
    ms: list[float] = field(default_factory=list)


def parameters(shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random parameters with random gradients; all contenders share them, each has its own state."""
    generator = torch.Generator(device).manual_seed(0)
    params: list[Tensor] = []
    for shape in shapes:
        values, grad = (torch.randn(shape, generator=generator, device=device) * 0.02 for _ in range(2))
        params.append(torch.nn.Parameter(values.to(dtype)))
        params[-1].grad = grad.to(dtype)
    return params


def floor(params: Sequence[Tensor]) -> Callable[[], object]:
    """In-place additions that move as many bytes as a step of SGD-SaI: five streams of the parameters.

    `a.add_(b)` moves three streams of a's elements: five thirds of the parameters' elements are added, in
    arrays of the parameters' sizes or, for small models, in one.
    """
    size = sum(param.numel() for param in params) * STREAMS // 3
    piece = min(size, 1 << 25)
    a, b = (torch.zeros(piece, dtype=params[0].dtype, device=params[0].device) for _ in range(2))

    def add() -> None:
        left = size
        while left > 0:
            a[:left].add_(b[:left])
            left -= piece

    return add


def interleave(series: Sequence[Series], rounds: int, device: torch.device, tick: Callable[[], None]) -> None:
    """Fill the series: `rounds` rounds, in each of which the order is rotated by one."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for turn in range(rounds):
        first = turn % len(series)
        for one in [*series[first:], *series[:first]]:
            wait()
            begin = time.perf_counter()
            one.step()
            wait()
            one.ms.append(1e3 * (time.perf_counter() - begin))
        tick()


def ratio(a: Series, b: Series) -> float:
    """The median of a/b, round by round."""
    return statistics.median(x / y for x, y in zip(a.ms, b.ms, strict=True))


def quartiles(ms: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(ms) < 2:
        return (ms[0],) * 3
    low, middle, high = statistics.quantiles(ms, n=4, method="inclusive")
    return low, middle, high
