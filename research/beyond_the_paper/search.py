"""Search the hyper-parameters of a method on a task of the lab, or the constants of its kinds of blocks.

    python -m research.beyond_the_paper.search --task gpt --method constants --trials 60

The same search for every method: three learning rates, then an evolution strategy of one parent and one
child, which changes about three numbers at a time, by a factor whose spread follows the one-fifth rule. It
minimises the held-out loss at the end of a run with seed 100. Constants begin where the searches of plain SGD
and of the rule rms(g)^(−1/2) have ended. Every trial is a line of searches.jsonl; started again, the
search goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from research.beyond_the_paper import results
from research.beyond_the_paper.blockwise import METHODS, blocks, kinds, rms, train
from research.beyond_the_paper.results import best, loss_of
from sgd_sai.gsnr import measure
from sgd_sai.lab import provenance, table
from sgd_sai.lab.runs import runner
from sgd_sai.lab.tasks import ALL

SEED = 100  # of the searches; proofs take others
SPREAD, SUCCESS = 0.6, 1.5  # of the first child, in nats; its growth after a success
CHANGED = 3  # numbers of a child that differ from its parent's, in the mean

Point = dict[str, float]


@dataclass(frozen=True)
class Number:
    """One number of a point: its ends, and whether it is searched by its logarithm."""

    least: float
    most: float
    log: bool = True

    def changed(self, value: float, by: float) -> float:
        """`value` times e^by, or where it is no logarithm plus a third of `by`, between the ends."""
        moved = value * math.exp(by) if self.log else value + by / 3
        return float(f"{min(max(moved, self.least), self.most):.4g}")


def space(method: str, task: str) -> dict[str, Number]:
    """Return the numbers that are searched for a method."""
    if method == "adamw":
        return {"lr": Number(1e-5, 1), "1 - beta1": Number(0.01, 1), "1 - beta2": Number(1e-4, 0.5)}
    searched = {"lr": Number(1e-5, 1), "1 - mu": Number(0.01, 1)}
    if method.startswith("adaptive"):
        searched |= {"1 - beta2": Number(1e-4, 0.5)}
    elif method == "constants":
        model = runner.load(task, None).model()
        searched |= {f"c of {kind}": Number(1e-3, 1e3) for kind in kinds(model)}
    elif method == "powers":
        searched |= {"power of rms(g)": Number(-1, 2, log=False), "power of d": Number(-1, 1, log=False)}
        searched |= {"c of vectors": Number(1e-3, 1e3)}
    return searched


def first_points(method: str, task: str) -> list[Point]:
    """Where a search begins: half a decade around what is usual; of constants, where others ended."""
    if method == "adamw":
        return [{"lr": lr, "1 - beta1": 0.1, "1 - beta2": 0.05} for lr in (1e-3, 3.16e-3, 1e-2)]
    if method == "constants":
        kinds_of = [name for name in space(method, task) if name.startswith("c of")]
        ended = {name: _ended(task, name) for name in ("sgd", "rms")}
        return [
            {**ended["sgd"], **dict.fromkeys(kinds_of, 1.0)},
            {**ended["rms"], **{f"c of {kind}": c for kind, c in first_constants(task).items()}},
        ]
    more = {"power of rms(g)": 0.5, "power of d": 0.0, "c of vectors": 1.0, "1 - beta2": 0.05}
    searched = space(method, task)
    return [
        {"lr": lr, "1 - mu": 0.15, **{name: more[name] for name in more if name in searched}}
        for lr in (1e-3, 3.16e-3, 1e-2)
    ]


def _ended(task: str, method: str) -> Point:
    point: Point = best(results.trials(task, method))["point"]
    return point


def first_constants(task: str) -> dict[str, float]:
    """Return the constants of the rule rms(g)^(−1/2) at the first gradient: geometric means by kind."""
    problem = runner.load(task, None)
    torch.manual_seed(SEED)
    model = problem.model()
    problem.loss(model, problem.batch(SEED, 0)).backward()  # type: ignore[no-untyped-call]
    of_kind: dict[str, list[float]] = {kind: [] for kind in kinds(model)}
    for block in blocks(model):
        (of_block,) = measure([[block.of(block.param.grad)]])
        if of_block.measurable:
            of_kind[block.kind].append(-0.5 * math.log(rms(of_block)))
    found = {kind: math.exp(sum(logs) / len(logs)) for kind, logs in of_kind.items() if logs}
    return {kind: float(f"{found.get(kind, max(found.values())):.4g}") for kind in of_kind}


def following(trials: list[dict[str, Any]], beginnings: list[Point], searched: dict[str, Number]) -> Point:
    """The point of the next trial, a function of those before."""
    if len(trials) < len(beginnings):
        return beginnings[len(trials)]
    parents, spread = trials[: len(beginnings)], SPREAD
    for child in trials[len(beginnings) :]:
        better = loss_of(child) < loss_of(best(parents))
        spread *= SUCCESS if better else SUCCESS**-0.25
        parents = [*parents, child]
    rng = np.random.default_rng((SEED, len(trials)))
    point = dict(best(trials)["point"])
    chosen = rng.random(len(searched)) < CHANGED / len(searched)
    chosen[rng.integers(len(searched))] = True
    for (name, number), change, z in zip(
        searched.items(), chosen, rng.normal(size=len(searched)), strict=True
    ):
        if change:
            point[name] = number.changed(point[name], spread * z)
    return point


def main() -> None:
    """Search until there are as many trials as were asked for."""
    parser = argparse.ArgumentParser(description="Search the hyper-parameters of a method on a task.")
    parser.add_argument("--task", required=True, choices=sorted(ALL))
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument(
        "--out", type=Path, default=results.RUNS / results.SEARCHES.name, help="the file of trials"
    )
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    task, problem = ALL[args.task], runner.load(args.task, None)
    search = {"task": args.task, "method": args.method, "steps": task.steps, "seed": SEED}
    search |= provenance.record()
    trials, searched = results.trials(args.task, args.method, args.out), space(args.method, args.task)
    beginnings = first_points(args.method, args.task)
    while len(trials) < args.trials:
        point, begun = following(trials, beginnings, searched), time.perf_counter()
        result = train(task, problem, args.method, point, seed=SEED)
        seconds = round(time.perf_counter() - begun, 1)
        trials.append({"search": search, "point": point, "seconds": seconds, **result})
        table.append(args.out, trials[-1], ("search",))
        print(
            f"{args.task} {args.method} {len(trials)}/{args.trials}: {loss_of(trials[-1]):.4f}, "
            f"best {loss_of(best(trials)):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
