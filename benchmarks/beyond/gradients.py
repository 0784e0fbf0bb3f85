"""How large gradients and weights of each block are along training, with AdamW and with SGD.

    python benchmarks/beyond/gradients.py --task gpt

One run of each at the best point of its search, with the same seed. The record,
benchmarks/results/beyond/gradients/TASK.json, has for every block the root mean square of its gradient and of
its weights at some steps, the geometric mean of the former over all steps, and for AdamW how far its second
moment differs within the block: the deviation of log √v over its elements.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from blockwise import RESULTS, blocks, train
from search import SEED, best
from sgd_sai.lab import runner
from sgd_sai.lab.provenance import command, machine, now, versions
from sgd_sai.lab.records import write_json
from sgd_sai.lab.tasks import ALL

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 300)
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
    for method in ("adamw", "sgd"):
        trials = json.loads((RESULTS / "search" / f"{args.task}-{method}.json").read_text())["trials"]
        watch = Watch()
        train(task, problem, method, best(trials)["point"], seed=SEED, watch=watch)
        record[method] = watch.record()
    path = RESULTS / "gradients" / f"{args.task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


if __name__ == "__main__":
    main()
