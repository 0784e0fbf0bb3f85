"""How large gradients and weights of each block are along training, with AdamW and with SGD.

    python benchmarks/beyond/gradients.py --task gpt

One run of each at the best point of its search, with the same seed. The record,
benchmarks/results/beyond/gradients/TASK.json, has for every block the root mean square of its gradient and of
its weights at some steps, the geometric mean of the former over all steps, and for AdamW how far its second
moment differs within the block: the deviation of log √v over its elements. Before the first step, the second
derivative of the loss along the block's gradient. Started again, it adds what a record lacks.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from blockwise import RESULTS, Block, best, blocks, train
from search import SEED
from sgd_sai.lab.provenance import command, machine, now, versions
from sgd_sai.lab.records import write_json
from sgd_sai.lab.runs import runner
from sgd_sai.lab.tasks import ALL, Problem

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 300)
DISPLACEMENT = 1e-3  # root mean square over a block's elements, to see how its gradient changes
_LEAST = 1e-30  # of a v that counts: elements that never had a gradient have none


class Watch:
    """What a run is asked at each step, before it moves."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.logs: dict[str, list[float]] = {}
        self.at: dict[int, dict[str, dict[str, float]]] = {}

    @torch.no_grad()
    def __call__(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Record a step, counted from 0."""
        found = blocks(model)
        sizes = {block.name: _rms(block.of(block.param.grad)) for block in found}
        for name, size in sizes.items():
            if size > 0:
                self.logs.setdefault(name, []).append(math.log(size))
        if step + 1 not in STEPS:
            return
        self.at[step + 1] = {
            "rms(g)": sizes,
            "rms(w)": {block.name: _rms(block.of(block.param)) for block in found},
        }
        if isinstance(optimizer, torch.optim.AdamW) and step:
            for block in found:
                v = block.of(optimizer.state[block.param]["exp_avg_sq"]).flatten()
                logs = v[v > _LEAST].log() / 2
                if len(logs) > 1:
                    self.at[step + 1].setdefault("deviation of log √v", {})[block.name] = logs.std().item()

    def record(self) -> dict[str, Any]:
        """Everything seen, four digits of it."""
        means = {name: math.exp(sum(logs) / len(logs)) for name, logs in self.logs.items()}
        return {
            "geometric mean of rms(g)": _short(means),
            "at": {k: {n: _short(v) for n, v in at.items()} for k, at in self.at.items()},
        }


def curvature(problem: Problem) -> dict[str, float]:
    """The second derivative of the first batch's loss along each block's gradient; 0 where that is zero.

    By the difference of the gradients on both sides, `DISPLACEMENT` away.
    """
    torch.manual_seed(SEED)
    model = problem.model()
    batch, found = problem.batch(SEED, 0), {}

    def slope(block: Block, direction: torch.Tensor) -> float:
        model.zero_grad()
        torch.manual_seed(SEED)
        problem.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        return float((block.of(block.param.grad) * direction).sum())

    torch.manual_seed(SEED)
    problem.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    directions = {block.name: block.of(block.param.grad).clone() for block in blocks(model)}
    for block in blocks(model):
        direction = directions[block.name]
        if (length := direction.norm()) == 0:
            found[block.name] = 0.0
            continue
        direction /= length
        h, before, sides = DISPLACEMENT * math.sqrt(direction.numel()), block.param.detach().clone(), []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                block.of(block.param).add_(direction, alpha=sign * h)
            sides.append(slope(block, direction))
            with torch.no_grad():
                block.param.copy_(before)
        found[block.name] = (sides[0] - sides[1]) / (2 * h)
    return _short(found)


def _rms(tensor: torch.Tensor) -> float:
    return math.sqrt(tensor.double().square().mean().item())


def _short(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def main() -> None:
    """Two runs, and their record."""
    parser = argparse.ArgumentParser(description="Sizes of gradients and weights along training.")
    parser.add_argument("--task", required=True, choices=sorted(ALL))
    args = parser.parse_args()
    torch.set_num_threads(1)
    task, problem = ALL[args.task], runner.load(args.task, None)
    path = RESULTS / "gradients" / f"{args.task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "command": command(),
        "date": now(),
        "machine": machine(),
        "versions": versions(),
        "seed": SEED,
        "kinds": {
            block.name: [block.kind, block.of(block.param).numel()] for block in blocks(problem.model())
        },
    }
    if path.exists():
        record = json.loads(path.read_text())
    for method in ("adamw", "sgd"):
        if method not in record:
            trials = json.loads((RESULTS / "search" / f"{args.task}-{method}.json").read_text())["trials"]
            watch = Watch()
            train(task, problem, method, best(trials)["point"], seed=SEED, watch=watch)
            record[method] = watch.record()
    if "curvature along the gradient" not in record:
        record["curvature along the gradient"] = curvature(problem)
    write_json(path, record)


if __name__ == "__main__":
    main()
