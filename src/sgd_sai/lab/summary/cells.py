"""Cells of the tables of results, as text: the report and the documentation show the same."""

from __future__ import annotations

from sgd_sai.lab.summary import statistics
from sgd_sai.lab.summary.rows import Row, TaskSummary

MISSING = "–"


def result(row: Row, metric: str) -> str:
    """Return mean ± standard deviation over the seeds that finished."""
    value, spread = row.mean(metric), row.spread(metric)
    if value is None:
        return MISSING
    by_accuracy = metric == "val_accuracy"
    scale, digits, unit = (100, 1, " %") if by_accuracy else (1, 4, "")
    shown = f"{scale * value:.{digits}f}" + (f" ± {scale * spread:.{digits}f}" if spread is not None else "")
    return (shown + unit).replace(" ", "\u00a0")


def difference(task: TaskSummary, row: Row) -> str:
    """Return the mean of the paired differences to AdamW, its interval, and the pairs if not all."""
    if task.base is None or row is task.base:
        return MISSING
    found = statistics.difference(row.runs, task.base.runs, task.about["metric"])
    if found is None:
        return MISSING
    scale, digits, unit = (100, 1, " points") if task.by_accuracy else (1, 4, "")

    def shown(value: float) -> str:
        return f"{scale * value:+.{digits}f}".replace("-", "\u2212")

    if found.interval is None:
        return f"{shown(found.mean)}{unit}, one seed"
    low, high = found.interval
    some = f", {found.pairs} seeds" if found.pairs < len(row.runs) else ""
    return f"{shown(found.mean)} ({shown(low)} to {shown(high)}){unit}{some}"


def reached(task: TaskSummary, row: Row) -> str:
    """Return step and second at which it was as good as AdamW ends."""
    if task.base is None:
        return MISSING
    found = statistics.reached(row.runs, task.base.runs, task.about["metric"], task.by_accuracy)
    if found is None:
        return MISSING
    if found.steps is None or found.seconds is None:
        return "not reached"
    some = f", {found.reached} of {found.pairs} seeds" if found.reached < found.pairs else ""
    return f"step {found.steps:.0f}, {found.seconds:.0f} s{some}"


def tuning(row: Row) -> str:
    """Return how the learning rate was found."""
    if row.trials is None:
        return "given"
    return f"{row.trials} trials" + (", on the edge of its grid" if row.on_edge else "")
