"""The result of runs in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.summary.rows import BASE, OURS, TaskSummary


def sentences(tasks: Sequence[TaskSummary]) -> list[str]:
    """Return the result in plain sentences: where runs end, their cost, and how far they can be trusted."""
    said = _about_all(tasks)
    said += [sentence for task in tasks for sentence in _about_task(task)]
    said += _about_tuning(tasks)
    said += _about_state(tasks)
    said += _about_time(tasks)
    seeds = min((len(row.finished) for task in tasks for row in task.ranking), default=0)
    if seeds == 1:
        said.append("One seed each: the spread is not known, and small differences may be chance.")
    elif seeds > 1:
        said.append(f"Means over at least {seeds} seeds; ± is the standard deviation over them.")
    return said


def _about_all(tasks: Sequence[TaskSummary]) -> list[str]:
    compared = [
        (task.shown_mean(ours), [task.shown_mean(row) for row in task.ranking])
        for task in tasks
        if len(task.ranking) > 1 and (ours := task.best(OURS)) in task.ranking
    ]
    if len(compared) < 2:
        return []
    first = sum(ours == ranking[0] for ours, ranking in compared)
    last = sum(ours == ranking[-1] for ours, ranking in compared)
    return [f"SGD-SaI ends first on {first} of {len(compared)} tasks and last on {last}."]


def _about_task(task: TaskSummary) -> list[str]:
    title, metric = task.title, task.about["metric"]
    troubles = [f"{title}: {row.label} {trouble}." for row in task.rows for trouble in row.troubles]
    if not task.ranking:
        return troubles or [f"{title}: no run has finished."]
    scored = [(row, row.mean(metric) or 0.0) for row in task.ranking]
    (best, value), others = scored[0], scored[1:]
    superlative = "the highest accuracy" if task.by_accuracy else "the lowest validation loss"
    unit = "" if task.by_accuracy else f" {task.about['unit']}"
    if not others:
        return [f"{title}: {best.label} ends at {task.shown(value)}{unit}.", *troubles]
    level = [row for row, other in others if task.shown(other) == task.shown(value)]
    if level:
        names = " and ".join(row.label for row in (best, *level))
        first = f"{title}: {names} end level at {task.shown(value)}{unit}, {superlative}"
    else:
        first = f"{title}: {best.label} reaches {superlative}, {task.shown(value)}{unit}"
    side = "lower" if task.by_accuracy else "higher"
    behind = [
        f"{row.label} ends {task.difference(other, value)} {side}"
        for row, other in others
        if row not in level
    ]
    return ["; ".join([first, *behind]) + ".", *troubles]


def _about_tuning(tasks: Sequence[TaskSummary]) -> list[str]:
    said = []
    for task in tasks:
        said += [
            f"{task.title}: the learning rate of {row.label}, {row.lr:.3g}, is on the edge of its grid."
            for row in task.rows
            if row.on_edge
        ]
        trials = {row.label: row.trials for row in task.rows if row.trials is not None}
        if len(set(trials.values())) > 1:
            counts = ", ".join(f"{label} {count}" for label, count in trials.items())
            said.append(f"{task.title}: the numbers of tuning trials differ: {counts}.")
    return said


def _about_state(tasks: Sequence[TaskSummary]) -> list[str]:
    shares = []
    for task in tasks:
        ours, adamw = task.best(OURS), task.best(BASE)
        if ours and adamw and ours.state_bytes and adamw.state_bytes:
            shares.append(100 * ours.state_bytes / adamw.state_bytes)
    if not shares:
        return []
    return [
        f"SGD-SaI's state is {_range(shares, '.0f')} % of AdamW's, as measured on the optimizers at the end."
    ]


def _about_time(tasks: Sequence[TaskSummary]) -> list[str]:
    ratios: dict[str, list[float]] = {}
    for task in tasks:
        ours = task.best(OURS)
        for name in dict.fromkeys(row.optimizer for row in task.rows if row.optimizer != OURS):
            other = task.best(name)
            if ours and other and ours.step_ms and other.step_ms:
                ratios.setdefault(name, []).append(ours.step_ms / other.step_ms)
    if not ratios:
        return []
    parts = [f"{_range(values, '.2f')} × that of {OPTIMIZERS[name].label}" for name, values in ratios.items()]
    return [f"The median time of SGD-SaI's optimizer.step is {' and '.join(parts)}."]


def _range(values: Sequence[float], spec: str) -> str:
    low, high = format(min(values), spec), format(max(values), spec)
    return low if low == high else f"{low}–{high}"
