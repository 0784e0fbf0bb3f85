"""Run the best point of each search on new seeds, for longer, on a wider model, on other data.

    python -m research.beyond_the_paper.prove --task gpt --seeds 0,1,2,3,4
    python -m research.beyond_the_paper.prove --task gpt --steps 1200 --seeds 0,1
    python -m research.beyond_the_paper.prove --task gpt --width 256 --seeds 0,1
    python -m research.beyond_the_paper.prove --task gpt --data data/tinyshakespeare.txt --seeds 0,1,2
    python -m research.beyond_the_paper.prove --task diffusion --judges 100,101,102

Where steps, width or data are others than in the search, or judges are given, each method first tries
learning rates, and the judges, seeds of which the first is that of the searches, tell the best in the mean:
an octave apart around its own, on while the best is on an edge, then half an octave beside the best.
Constants, exponents and momenta stay as they were found. Every run is a line of proofs.jsonl, under
the name TASK[-STEPS][-wWIDTH][-DATA][-judged]; started again, it goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from research.beyond_the_paper import results
from research.beyond_the_paper.blockwise import METHODS, train
from research.beyond_the_paper.results import best, loss_of
from research.beyond_the_paper.search import SEED, Point
from sgd_sai.lab import provenance, table
from sgd_sai.lab.runs import runner
from sgd_sai.lab.tasks import ALL, Problem, gpt

FACTOR = math.sqrt(2.0)  # between learning rates


def problem_of(task: str, width: int | None, data: str | None) -> Problem:
    """The lab's problem, its model of another width or on other data where they are given."""
    if width is None:
        return runner.load(task, data)
    return gpt.load(Path(data) if data else None, partial(gpt.model, width, 4, width // 32, gpt.CONTEXT))


def tuned(point: Point, result: Callable[[Point], float]) -> Point:
    """Return `point` with the learning rate of the least result, which is asked for once at each of them."""
    found: dict[int, float] = {}

    def there(k: int) -> Point:
        return {**point, "lr": float(f"{point['lr'] * FACTOR**k:.4g}")}

    def at(k: int) -> float:
        if k not in found:
            found[k] = result(there(k))
        return found[k]

    for k in (-2, 0, 2):
        at(k)
    while (chosen := min(found, key=at)) in (min(found), max(found)) and len(found) < 9:
        at(chosen - 2 if chosen == min(found) else chosen + 2)
    for k in (chosen - 1, chosen + 1):
        at(k)
    return there(min(found, key=at))


def main() -> None:
    """Run what the record lacks."""
    parser = argparse.ArgumentParser(
        description="Methods at their best points, on other seeds, steps or widths."
    )
    parser.add_argument("--task", required=True, choices=sorted(ALL))
    parser.add_argument("--methods", help="with commas (default: those that were searched)")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--width", type=int, help="of gpt; heads stay 32 wide")
    parser.add_argument("--data", help="of the task, instead of its own: as for `sgd-sai compare`")
    parser.add_argument("--judges", help="seeds that choose the learning rate again, with commas")
    parser.add_argument(
        "--out", type=Path, default=results.RUNS / results.PROOFS.name, help="the file of runs"
    )
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    task, problem = ALL[args.task], problem_of(args.task, args.width, args.data)
    name = args.task + (f"-{args.steps}" if args.steps else "") + (f"-w{args.width}" if args.width else "")
    name += f"-{Path(args.data).stem}" if args.data else ""
    name += "-judged" if args.judges else ""
    judges = [int(seed) for seed in args.judges.split(",")] if args.judges else [SEED]
    proof = {"name": name, "task": args.task, "steps": args.steps or task.steps, "width": args.width}
    proof |= provenance.record()
    made = {
        (row["method"], row["seed"], row["for"], *row["point"].items()): row
        for row in results.proofs(name, args.out)
    }

    def run(method: str, point: Point, seed: int, purpose: str) -> dict[str, Any]:
        key = (method, seed, purpose, *point.items())
        if key not in made:
            about = {"proof": proof, "method": method, "seed": seed, "for": purpose, "point": point}
            made[key] = about | train(task, problem, method, point, seed=seed, steps=args.steps)
            table.append(args.out, made[key], ("proof",))
            print(f"{name} {method} seed {seed}: {loss_of(made[key]):.4f}", flush=True)
        return made[key]

    for method in args.methods.split(",") if args.methods else METHODS:
        if not (trials := results.trials(args.task, method)):
            continue
        point = best(trials)["point"]
        if args.steps or args.width or args.data or args.judges:
            # A closure must not see the next method.
            def judged(there: Point, method: str = method) -> float:
                return mean(loss_of(run(method, there, seed, "lr")) for seed in judges)

            point = tuned(point, judged)
        for seed in args.seeds.split(","):
            run(method, point, int(seed), "proof")


if __name__ == "__main__":
    main()
