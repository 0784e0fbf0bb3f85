"""Does training in fewer bits follow float32? The lab's GPT in each precision: same lr, seeds and batches.

    python benchmarks/low_precision.py --seeds 0,1,2 --out benchmarks/results/low-precision.json

Validation loss at the end, and its paired difference to float32 with a 95 % confidence interval over seeds
(t). A killed run goes on with what the file has.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from sgd_sai import SGDSaI, param_groups
from sgd_sai.files import write_json
from sgd_sai.lab import tuned
from sgd_sai.lab.provenance import command, machine, now
from sgd_sai.lab.tasks import ALL

BF16 = torch.bfloat16
#: Dtype of the parameters, and the options of SGDSaI.
PRECISIONS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "float32, momentum bf16": (torch.float32, {"state_dtype": BF16}),
    "float32, momentum 8 bit": (torch.float32, {"state_dtype": "8bit"}),
    "bf16, to nearest": (BF16, {}),
    "bf16, stochastic": (BF16, {"rounding": "stochastic"}),
    "bf16, Kahan": (BF16, {"rounding": "kahan"}),
    "bf16, stochastic, momentum 8 bit": (BF16, {"rounding": "stochastic", "state_dtype": "8bit"}),
}


def train(name: str, seed: int, steps: int) -> float:
    """The validation loss after a run."""
    dtype, options = PRECISIONS[name]
    task = ALL["gpt"]
    problem = task.load(None)
    torch.manual_seed(seed)
    model = problem.model().to(dtype).train()
    lr = tuned.read(tuned.OWN)["gpt"]["sgd-sai"]["lr"]
    optimizer = SGDSaI(param_groups(model, weight_decay=task.shrink / lr), lr=lr, **options)
    warm_up = steps // 10
    for step in range(steps):
        done = max(0, step - warm_up) / (steps - warm_up)
        factor = (step + 1) / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        optimizer.zero_grad()
        problem.loss(model, problem.batch(seed, step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip or math.inf)
        optimizer.step()
    return problem.evaluate(model.float())["val_loss"]


def interval(differences: list[float]) -> list[float]:
    """Mean and half the width of its 95 % confidence interval."""
    half = (
        stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
        if len(differences) > 1
        else math.nan
    )
    return [float(np.mean(differences)), float(half)]


def main() -> int:
    """Run what the file has not, write after every run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/low-precision.json"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    torch.set_num_threads(1)
    record: dict[str, Any] = {"steps": args.steps, "val_loss": {}}
    if args.out.is_file():
        record = json.loads(args.out.read_text("utf-8"))
    losses = record["val_loss"]
    for seed in seeds:
        for name in PRECISIONS:
            of_name = losses.setdefault(name, {})
            if str(seed) not in of_name:
                of_name[str(seed)] = train(name, seed, args.steps)
                print(f"{name}, seed {seed}: {of_name[str(seed)]:.4f}", flush=True)
                record |= {"machine": machine(), "date": now(), "command": command()}
                record["torch"] = torch.__version__
                write_json(args.out, record)
    common = [seed for seed in losses["float32"] if all(seed in of_name for of_name in losses.values())]
    record["difference_to_float32"] = {
        name: interval([losses[name][seed] - losses["float32"][seed] for seed in common])
        for name in PRECISIONS
        if name != "float32"
    }
    write_json(args.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
