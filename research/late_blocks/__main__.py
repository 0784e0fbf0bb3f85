"""Tune each way to scale late blocks, then compare them on new seeds; run what the record lacks.

    python -m research.late_blocks --situation zero_head
    python -m research.late_blocks --situation lora --only-scales

Each way has the same number of trials. The first three learning rates are a factor of √10 apart; as long as
the best is on an edge, the search goes on there, then beside the best, a factor of 10^(1/4) from it, then
10^(1/8). Trials have one seed and one half of what is held out; the runs that count have other
seeds, and the other half. Started again, it goes on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from research.late_blocks import results
from research.late_blocks.results import BASE, loss_of
from research.late_blocks.situations import SITUATIONS, Situation, halves
from research.late_blocks.ways import WAYS, apart, capping, scales, train
from sgd_sai.lab import provenance, table
from sgd_sai.lab.tasks import Problem

SEED = 100  # of the searches; the runs that count take others
_STEPS_OF_SCALES = 12  # of the shortest run that has all its scales, unfrozen or measured again


def following(found: Mapping[int, float], start: int) -> int:
    """The next exponent of a search, given exponent → loss."""
    if not found:
        return start
    best = min(found, key=lambda k: (found[k], k))
    below = max((k for k in found if k < best), default=None)
    above = min((k for k in found if k > best), default=None)
    if below is None or above is None:
        return best - 4 if below is None else best + 4
    for spacing in (2, 1):
        for tried, k in ((below, best - spacing), (above, best + spacing)):
            if abs(best - tried) > spacing:
                return k
    return next(k for step in range(2, 9) for k in (best - step, best + step) if k not in found)


def rate(exponent: int) -> float:
    """10^(exponent/8), as it is written."""
    return float(f"{10 ** (exponent / 8):.4g}")


class Study:
    """The runs of one situation, those included that the record already has."""

    def __init__(self, name: str, situation: Situation, steps: int, folder: Path) -> None:
        """Load data and record."""
        self.situation, self.steps = situation, steps
        self.path = folder / f"{name}.jsonl"
        self.rows = results.rows(name, steps, folder)
        problem = situation.load()
        self.searched, self.judged = halves(problem)
        self.about = {"situation": name, "steps": steps, "data": problem.data, **provenance.record()}

    def add(self, row: table.Row) -> table.Row:
        """Record a line."""
        self.rows.append({"study": self.about, **row})
        table.append(self.path, self.rows[-1], ("study",))
        return self.rows[-1]

    def run(self, purpose: str, way: str, lr: float, seed: int, problem: Problem) -> table.Row:
        """The line of a run, which is made if it is missing."""
        key = {"for": purpose, "way": way, "lr": lr, "seed": seed}
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        begun = time.perf_counter()
        end = train(self.situation, problem, way, lr, seed=seed, steps=self.steps)
        result: dict[str, Any] = {"diverged": end.step}
        if end.model is not None:
            loss = problem.evaluate(end.model)["val_loss"]
            result = {"val_loss": round(loss, 6)} if math.isfinite(loss) else {"diverged": self.steps}
            if way != "adamw":
                result |= capping(end.optimizer)
        row = self.add({**key, **result, "seconds": round(time.perf_counter() - begun, 1)})
        print(f"{self.path.stem} {way} {purpose} lr {lr:g} seed {seed}: {loss_of(row):.4f}", flush=True)
        return row

    def search(self, way: str, trials: int) -> float:
        """The learning rate of the least loss after so many trials."""
        found: dict[int, float] = {}
        while len(found) < trials:
            k = following(found, self.situation.starts[way])
            found[k] = loss_of(self.run("lr", way, rate(k), SEED, self.searched))
        search = {rate(k): loss for k, loss in found.items()}
        if results.on_edge(search):
            print(f"{self.path.stem} {way}: the best learning rate is on the edge", flush=True)
        return results.best(search)

    def _low(self, way: str) -> float:
        return rate(self.situation.starts[way] - 4)  # at which no way diverges in a few steps

    def scales(self) -> None:
        """Record how many elements are capped, and how far the ways' scales are from those as it is."""
        if results.scales(self.rows):
            return
        steps = min(self.steps, _STEPS_OF_SCALES)
        ends = {
            way: train(self.situation, self.searched, way, self._low(way), seed=SEED, steps=steps)
            for way in WAYS
            if way != "adamw"
        }
        base = scales(ends[BASE].optimizer)
        factors = {way: apart(scales(end.optimizer), base) for way, end in ends.items() if way != BASE}
        row = self.add({"for": "scales", "seed": SEED, **capping(ends[BASE].optimizer), "apart": factors})
        print(f"{self.path.stem}: {row['capped']:.0%} capped, up to {row['ratio']}; {factors}", flush=True)


def main() -> None:
    """Run what the record lacks."""
    parser = argparse.ArgumentParser(description="Ways to scale blocks that meet their first gradient late.")
    parser.add_argument("--situation", required=True, choices=SITUATIONS)
    parser.add_argument("--only-scales", action="store_true", help="measure the scales, and train nothing")
    parser.add_argument("--trials", type=int, default=7, help="learning rates of each way")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of the runs that count, with commas")
    parser.add_argument("--steps", type=int, help="of a run")
    parser.add_argument("--out", type=Path, default=results.RUNS, help="the folder of records")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    situation = SITUATIONS[args.situation]
    study = Study(args.situation, situation, args.steps or situation.steps, args.out)
    study.scales()
    for way in () if args.only_scales else WAYS:
        lr = study.search(way, args.trials)
        for seed in args.seeds.split(","):
            study.run("proof", way, lr, int(seed), study.judged)


if __name__ == "__main__":
    main()
