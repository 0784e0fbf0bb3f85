"""Results of the experiments of research/beyond_the_paper: docs/beyond.md."""

from __future__ import annotations

from collections.abc import Callable, Collection
from statistics import mean
from typing import Any

from scipy.stats import spearmanr

from research.beyond_the_paper import results
from scripts.tables.markdown import table
from sgd_sai.lab.summary import cells


def search() -> str:
    """The best held-out loss of each search of `research/beyond_the_paper`, and its trials."""
    return _by_task(lambda trial: f"{trial['val_loss']:.4f} · {trial['trials']}")


def rates() -> str:
    """The learning rate that each search ended with, and how far apart those of the tasks are."""
    found = [results.searched(task) for task in results.TASKS]

    def apart(method: str) -> str:
        rates = [of[method]["point"]["lr"] for of in found if method in of]
        return f"{max(rates) / min(rates):.1f} ×" if len(rates) == len(found) else cells.MISSING

    return _by_task(lambda trial: f"{trial['point']['lr']:.2g}", **{"most ÷ least": apart})


def powers() -> str:
    """The exponents that the searches found, task by task."""
    rows = [["task", "p", "s", "factor of vectors", "momentum", "η"]]
    for task in results.TASKS:
        point = results.searched(task)["powers"]["point"]
        names = ("power of rms(g)", "power of d", "c of vectors")
        rows.append([task, *(f"{point[name]:.2f}" for name in names), f"{1 - point['1 - mu']:.2f}"])
        rows[-1].append(f"{point['lr']:.2g}")
    return table(*rows)


def _by_task(shown: Callable[[dict[str, Any]], str], **more: Callable[[str], str]) -> str:
    """A row a method, a column a task with what is shown of its best trial, then `more` columns."""
    found = {task: results.searched(task) for task in results.TASKS}
    rows = [["scales", *found, *more]]
    for method, label in results.LABELS.items():
        trials = [of.get(method) for of in found.values()]
        if any(trials):
            row = [shown(trial) if trial else cells.MISSING for trial in trials]
            rows.append([label, *row, *(column(method) for column in more.values())])
    return table(*rows)


def proof(titles: dict[str, str], methods: Collection[str]) -> str:
    """By how much each method is behind AdamW on seeds that no search has seen; of AdamW what it reached."""
    found = {name: of for name in titles if (of := results.proven(name))}
    rows = [["scales", *(f"{titles[name]}, {len(of['adamw'])} seeds" for name, of in found.items())]]
    for method in (method for method in methods if any(method in of for of in found.values())):
        rows.append([results.LABELS[method], *(_behind(name, method) for name in found)])
    return table(*rows)


def _behind(name: str, method: str) -> str:
    runs = results.proven(name)
    if method not in runs:
        return cells.MISSING
    if method == "adamw":
        result = mean(runs[method].values())
        return f"{result:.1%}" if results.by_accuracy(name) else f"{result:.4f} nats"
    behind, interval = results.behind(name, method)
    ends = f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})" if interval else ""
    return f"{100 * behind:+.1f}{ends}".replace("-", "−")


def apart() -> str:
    """Return how far gpt is behind with one number a block, and with numbers that do not change."""
    return table(
        ["", "one number a block", "one number an element"],
        ["fixed, of AdamW's own run", _behind("gpt", "hindsight"), _behind("gpt", "elements")],
        ["fixed, of the first gradient", _behind("gpt", "settled"), cells.MISSING],
        ["followed over time", _behind("gpt", "adaptive"), "AdamW itself"],
    )


def kinds(task: str, ranked: bool = False) -> str:
    """Return the measurements of each kind of block of a task, and the constants that the search found."""
    found = results.kinds(task)
    measured = {"mean of d": "d", "rms(g)": "rms(g)", "rms(w)": "rms(w)", "curvature": "curvature"}
    later = {"along": "rms(g), AdamW's run", "spread": "spread of √v within"}
    rows = [["kind", "c, searched", *measured.values(), *later.values()]]
    for row in found:
        sizes = " to ".join(dict.fromkeys(f"{d:,}" for d in row["d"]))
        numbers = [f"{row[name]:.1e}" if row[name] else "0" for name in ("rms(g)", "rms(w)")]
        later_shown = [f"{row['along']:.1e}", f"× {row['spread']:.1f}"]
        curvature = f"{row['curvature']:.2g}".replace("-", "−")
        rows.append([row["kind"], f"{row['c']:.2g}", sizes, *numbers, curvature, *later_shown])
    if ranked:
        pairs = [([row[name] for row in found], [row["c"] for row in found]) for name in (*measured, *later)]
        ranks = [f"{spearmanr(*pair)[0]:+.2f}".replace("-", "−") for pair in pairs]
        rows.append(["*rank correlation with c*", "", *ranks])
    return table(*rows)
