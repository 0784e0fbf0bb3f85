"""How large gradients and weights of each block are along training, with AdamW and with SGD.

    python -m research.beyond_the_paper.gradients --task gpt

One run of each at the best point of its search, with the same seed. Each kind of block is a line of
gradients.jsonl: root mean squares of its gradients at some steps of both runs, of its weights at the
first, and how far AdamW's second moment differs within a block at the last, the deviation of log √v over its
elements as a factor; geometric means over the blocks of the kind. "curvature" is the second derivative of the
loss along a block's gradient before the first step, a mean. For each of its "blocks", with their numbers of
elements, "along" is the geometric mean of the gradient's root mean square over all steps of AdamW's run; null
where it never had one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from research.beyond_the_paper import results
from research.beyond_the_paper.blockwise import Block, blocks, train
from research.beyond_the_paper.results import best, geometric_mean
from research.beyond_the_paper.search import SEED
from sgd_sai.lab import provenance, table
from sgd_sai.lab.runs import runner
from sgd_sai.lab.tasks import ALL, Problem

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 300)
DISPLACEMENT = 1e-3  # root mean square over a block's elements, to see how its gradient changes
_LEAST = 1e-30  # of a v that counts: elements that never had a gradient have none


class Watch:
    """Sizes of gradients and weights in a run, taken at its steps before they move anything."""

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.logs: dict[str, list[float]] = {}  # of the rms of each block's gradients that are not zero
        self.gradients: dict[int, dict[str, float]] = {}  # step → block → rms
        self.weights: dict[str, float] = {}  # rms at the first step
        self.deviations: dict[str, float] = {}  # of log √v at the last of `STEPS`

    @torch.no_grad()
    def __call__(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Record a step, counted from 0."""
        found = blocks(model)
        sizes = {block.name: _rms(block.of(block.param.grad)) for block in found}
        for name, size in sizes.items():
            if size > 0:
                self.logs.setdefault(name, []).append(math.log(size))
        if step == 0:
            self.weights = {block.name: _rms(block.of(block.param)) for block in found}
        if step + 1 not in STEPS:
            return
        self.gradients[step + 1] = sizes
        if isinstance(optimizer, torch.optim.AdamW) and step:
            for block in found:
                v = block.of(optimizer.state[block.param]["exp_avg_sq"]).flatten()
                logs = v[v > _LEAST].log() / 2
                self.deviations[block.name] = logs.std().item() if len(logs) > 1 else 0.0

    @property
    def along(self) -> dict[str, float]:
        """Geometric means of the rms of blocks' gradients over the run."""
        return {name: math.exp(mean(logs)) for name, logs in self.logs.items()}


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
    return found


def _rms(tensor: torch.Tensor) -> float:
    return math.sqrt(tensor.double().square().mean().item())


def by_kind(
    found: list[Block], adamw: Watch, sgd: Watch, curvatures: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield the row of each kind of block, without what the rows have in common."""
    for kind in dict.fromkeys(block.kind for block in found):
        names = [block.name for block in found if block.kind == kind]

        def over(values: dict[str, float], names: list[str] = names) -> float:
            return _short(geometric_mean(values[name] for name in names))

        yield {
            "kind": kind,
            "rms(g)": {
                method: {step: over(sizes) for step, sizes in watch.gradients.items()}
                for method, watch in (("adamw", adamw), ("sgd", sgd))
            },
            "rms(w)": over(adamw.weights),
            "curvature": _short(mean(curvatures[name] for name in names)),
            "spread": _short(math.exp(mean(adamw.deviations[name] for name in names))),
            "blocks": {block.name: block.of(block.param).numel() for block in found if block.kind == kind},
            "along": [_short(adamw.along[name]) if name in adamw.along else None for name in names],
        }


def _short(value: float) -> float:
    return float(f"{value:.8g}")


def main() -> None:
    """Two runs, and their lines, unless the task has some."""
    parser = argparse.ArgumentParser(description="Sizes of gradients and weights along training.")
    parser.add_argument("--task", required=True, choices=sorted(ALL))
    parser.add_argument("--out", type=Path, default=results.RUNS / results.GRADIENTS.name, help="their file")
    args = parser.parse_args()
    if results.measured(args.task, args.out):
        sys.exit(f"{args.out} has lines of {args.task}; remove them to measure again")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    task, problem = ALL[args.task], runner.load(args.task, None)
    run = {"task": args.task, "seed": SEED, **provenance.record()}
    watches = {"adamw": Watch(), "sgd": Watch()}
    for method, watch in watches.items():
        point = best(results.trials(args.task, method))["point"]
        train(task, problem, method, point, seed=SEED, watch=watch)
    for row in by_kind(blocks(problem.model()), **watches, curvatures=curvature(problem)):
        table.append(args.out, {"run": run, **row}, ("run",))


if __name__ == "__main__":
    main()
