"""Run the best point of each search on new seeds, for longer, on a wider model, on other data.

    python benchmarks/beyond/prove.py --task gpt --seeds 0,1,2,3,4
    python benchmarks/beyond/prove.py --task gpt --steps 1200 --seeds 0,1
    python benchmarks/beyond/prove.py --task gpt --width 256 --seeds 0,1
    python benchmarks/beyond/prove.py --task gpt --data data/tinyshakespeare.txt --seeds 0,1,2
    python benchmarks/beyond/prove.py --task diffusion --judges 100,101,102

Where steps, width or data are others than in the search, or judges are given, each method first tries
learning rates, and the judges, seeds of which the first is that of the searches, tell the best in the mean:
an octave apart around its own, on while the best is on an edge, then half an octave beside the best.
Constants, exponents and momenta stay as they were found. The record is
benchmarks/results/beyond/proof/TASK[-STEPS][-wWIDTH][-DATA][-judged].json; started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from blockwise import METHODS, RESULTS, best, loss_of, train
from search import SEED, Point
from sgd_sai.lab.provenance import command, machine, now, versions
from sgd_sai.lab.records import write_json
from sgd_sai.lab.runs import runner
from sgd_sai.lab.tasks import ALL, Problem, Task, gpt

FACTOR = math.sqrt(2.0)  # between learning rates


def problem_of(task: str, width: int | None, data: str | None) -> Problem:
    """The lab's problem, its model of another width or on other data where they are given."""
    if width is None:
        return runner.load(task, data)
    return gpt.load(Path(data) if data else None, partial(gpt.model, width, 4, width // 32, gpt.CONTEXT))


def tuned(
    task: Task, problem: Problem, method: str, point: Point, steps: int | None, judges: list[int]
) -> tuple[Point, list[Any]]:
    """`point` with the best learning rate for these steps and this model, and the trials."""
    trials: dict[int, dict[str, Any]] = {}

    def at(k: int) -> float:
        if k not in trials:
            there = {**point, "lr": float(f"{point['lr'] * FACTOR**k:.4g}")}
            runs = {str(seed): train(task, problem, method, there, seed=seed, steps=steps) for seed in judges}
            trials[k] = {"point": there, "runs": runs}
        return mean(map(loss_of, trials[k]["runs"].values()))

    for k in (-2, 0, 2):
        at(k)
    while (chosen := min(trials, key=at)) in (min(trials), max(trials)) and len(trials) < 9:
        at(chosen - 2 if chosen == min(trials) else chosen + 2)
    for k in (chosen - 1, chosen + 1):
        at(k)
    chosen = min(trials, key=at)
    return trials[chosen]["point"], [trials[k] for k in sorted(trials)]


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
    args = parser.parse_args()
    torch.set_num_threads(1)
    task, problem = ALL[args.task], problem_of(args.task, args.width, args.data)
    name = args.task + (f"-{args.steps}" if args.steps else "") + (f"-w{args.width}" if args.width else "")
    name += f"-{Path(args.data).stem}" if args.data else ""
    name += "-judged" if args.judges else ""
    judges = [int(seed) for seed in args.judges.split(",")] if args.judges else [SEED]
    path = RESULTS / "proof" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "task": args.task,
        "steps": args.steps or task.steps,
        "width": args.width,
        "command": command(),
        "date": now(),
        "machine": machine(),
        "versions": versions(),
        "methods": {},
    }
    if path.exists():
        record = json.loads(path.read_text())
    for method in args.methods.split(",") if args.methods else METHODS:
        searched = RESULTS / "search" / f"{args.task}-{method}.json"
        if not searched.exists():
            continue
        entry = record["methods"].setdefault(method, {"runs": {}})
        if "point" not in entry:
            entry["point"] = best(json.loads(searched.read_text())["trials"])["point"]
            if args.steps or args.width or args.data or args.judges:
                entry["point"], entry["trials"] = tuned(
                    task, problem, method, entry["point"], args.steps, judges
                )
        for seed in args.seeds.split(","):
            if seed not in entry["runs"]:
                run = train(task, problem, method, entry["point"], seed=int(seed), steps=args.steps)
                entry["runs"][seed] = run
                write_json(path, record)
                print(f"{name} {method} seed {seed}: {loss_of(run):.4f}", flush=True)


if __name__ == "__main__":
    main()
