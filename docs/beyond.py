"""What `benchmarks/beyond` has recorded, for the tables and figures of docs/beyond.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

from sgd_sai.lab.summary.statistics import interval
from sgd_sai.lab.tasks import ALL

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "beyond"
TASKS = ("gpt", "lora", "diffusion", "cnn", "vit")
#: Methods from nothing to AdamW: name → what the page calls it.
LABELS = {
    "sgd": "SGD with momentum",
    "sgd-sai": "SGD-SaI: g-SNR",
    "rms": "rms(g)^(−1/2)",
    "rms-rows": "rms(g)^(−1/2), embedding by rows",
    "settled": "rms(g)^(−3/4) · d^(−1/8)",
    "powers": "rms(g)^(−p) · d^s, searched",
    "constants": "one constant a kind, searched",
    "hindsight": "1 / rms(g) of AdamW's own run",
    "elements": "the same, for each element",
    "adaptive": "1 / rms(g), followed over time",
    "adaptive-rows": "followed over time, embedding by rows",
    "adamw": "AdamW",
}
#: File of proofs → how the learning rates in it were chosen.
CLIFF = {"diffusion": "chosen on one seed", "diffusion-judged": "chosen on three seeds"}
#: File of proofs → what is larger in it.
LARGER = {"gpt": "128 wide, 300 steps", "gpt-w256": "256 wide, 300 steps", "gpt-600": "128 wide, 600 steps"}
#: File of proofs → on which data.
OTHER_DATA = {
    "gpt-tinyshakespeare": "gpt on Shakespeare",
    "lora-e2e": "lora on E2E NLG",
}
ALSO_OTHER_DATA = ("sgd", "sgd-sai", "rms", "settled", "adamw")
ALSO_LARGER = ("sgd", "rms", "settled", "constants", "adamw")


def read(*parts: str) -> dict[str, Any] | None:
    """A record by its folder and its name, None where there is none."""
    path = RESULTS.joinpath(*parts).with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else None


def searched(task: str) -> dict[str, dict[str, Any]]:
    """Method → its best trial on a task, with how many there were."""
    found = {}
    for method in LABELS:
        if record := read("search", f"{task}-{method}"):
            best = min(record["trials"], key=loss)
            found[method] = {**best, "trials": len(record["trials"])}
    return found


def proven(name: str) -> dict[str, dict[str, float]]:
    """Method → seed → what its task is judged by, of a file of proofs; methods of which every seed is there.

    A held-out loss, ∞ if the run diverged, or an accuracy, then 0.
    """
    record = read("proof", name)
    if record is None:
        return {}
    accuracy = by_accuracy(name)
    entries = {
        method: {
            seed: float(run.get("val_accuracy", 0.0)) if accuracy else loss(run)
            for seed, run in entry["runs"].items()
        }
        for method, entry in record["methods"].items()
        if method in LABELS
    }
    seeds = entries["adamw"].keys()
    return {method: entries[method] for method in LABELS if entries.get(method, {}).keys() == seeds}


def by_accuracy(name: str) -> bool:
    """Whether the task of a file of proofs is judged by its accuracy."""
    return bool(ALL[name.partition("-")[0]].metric == "val_accuracy")


def loss(run: dict[str, Any]) -> float:
    """The held-out loss of a run, ∞ if it diverged."""
    return float(run.get("val_loss", math.inf))


def behind(name: str, method: str) -> tuple[float, tuple[float, float] | None]:
    """By what fraction of AdamW's result a method is worse, pair by pair of seeds: mean, 95 % interval."""
    runs = proven(name)
    sign = -1.0 if by_accuracy(name) else 1.0
    fractions = [
        sign * (value - runs["adamw"][seed]) / runs["adamw"][seed] for seed, value in runs[method].items()
    ]
    return mean(fractions), interval(fractions) if all(map(math.isfinite, fractions)) else None


def kinds(task: str) -> list[dict[str, Any]]:
    """What was measured and found of each kind of block of a task; means over its blocks."""
    record, trial = read("gradients", task), searched(task)["constants"]
    assert record is not None
    first, last = record["adamw"]["at"]["1"], record["adamw"]["at"][max(record["adamw"]["at"], key=int)]
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in record["kinds"].values()):
        names = [name for name, (of, _) in record["kinds"].items() if of == kind]
        sizes = [d for of, d in record["kinds"].values() if of == kind]
        rows.append(
            {
                "kind": kind,
                "d": (min(sizes), max(sizes)),
                "mean of d": mean(sizes),
                "rms(g) by step": {
                    method: {
                        int(step): _over(at["rms(g)"], names) for step, at in record[method]["at"].items()
                    }
                    for method in ("adamw", "sgd")
                },
                "rms(g)": _over(first["rms(g)"], names),
                "rms(w)": _over(first["rms(w)"], names),
                "curvature": mean(record["curvature along the gradient"][name] for name in names),
                "along": _over(record["adamw"]["geometric mean of rms(g)"], names),
                "spread": math.exp(mean(last["deviation of log √v"].get(name, math.nan) for name in names)),
                "c": trial["point"][f"c of {kind}"],
            }
        )
    middle = math.exp(mean(math.log(row["c"]) for row in rows))
    return [{**row, "c": row["c"] / middle} for row in rows]


def _over(values: dict[str, float], names: list[str]) -> float:
    """The geometric mean of some blocks' values that are not 0, or 0."""
    logs = [math.log(values[name]) for name in names if values.get(name, 0.0) > 0]
    return math.exp(mean(logs)) if logs else 0.0
