"""The table of results of a task."""

from __future__ import annotations

from collections.abc import Sequence

from sgd_sai import html
from sgd_sai.html import Content, Html, element, joined
from sgd_sai.lab.summary import Row, TaskSummary, cells


def results(task: TaskSummary) -> Html:
    """Return the table, a row per optimizer."""
    metric = task.about["metric"]
    columns: list[tuple[str, Sequence[Content]]] = [
        ("Optimizer", [element("b", row.label) for row in task.rows])
    ]
    if task.by_accuracy:
        columns.append(("Validation accuracy", [_result(task, row, metric) for row in task.rows]))
    columns += [
        (f"Validation loss, {task.about['unit']}", [_result(task, row, "val_loss") for row in task.rows]),
        *_against(task),
        ("Steps", [_steps(row) for row in task.rows]),
        ("Training", [_number(row.mean("seconds"), ".0f", " s") for row in task.rows]),
        ("Optimizer state", [_bytes(row.state_bytes) for row in task.rows]),
        ("optimizer.step", [_number(row.step_ms, ".2f", " ms") for row in task.rows]),
        ("Learning rate, of its grid", [_grid(row) for row in task.rows]),
    ]
    rows = [[element("span", column[index]) for _, column in columns] for index in range(len(task.rows))]
    return html.table([name for name, _ in columns], rows, kind="results")


def _against(task: TaskSummary) -> list[tuple[str, list[str]]]:
    """Return the columns about AdamW, if it was run beside others."""
    if task.base is None:
        return []
    label = task.base.label
    return [
        (f"Difference to {label}, 95 % interval", [cells.difference(task, row) for row in task.rows]),
        (f"As good as {label} ends, at", [cells.reached(task, row) for row in task.rows]),
    ]


def _result(task: TaskSummary, row: Row, metric: str) -> Content:
    shown = cells.result(row, metric)
    if metric != task.about["metric"]:
        return shown
    troubles = [element("span", trouble, class_="trouble") for trouble in row.troubles]
    if row.mean(metric) is None:
        return joined(troubles, " ") if troubles else shown
    best = task.ranking[0].mean(metric) == row.mean(metric)
    return joined([element("strong", shown) if best else shown, *troubles], " ")


def _steps(row: Row) -> str:
    runs = f" × {len(row.runs)} seeds" if len(row.runs) > 1 else ""
    return f"{row.runs[0].record.config.steps}{runs}"


def _grid(row: Row) -> Html:
    grid = [row.lr] if row.tuning is None else row.tuning["grid"]
    rates = [element("b", f"{rate:.3g}") if rate == row.lr else f"{rate:.3g}" for rate in grid]
    found = element("small", cells.tuning(row), class_="trouble" if row.on_edge else "")
    return joined([element("span", joined(rates, " · "), class_="grid"), element("br"), found])


def _number(value: float | None, spec: str, unit: str) -> str:
    return cells.MISSING if value is None else format(value, spec) + unit


def _bytes(count: int | None) -> str:
    return cells.MISSING if count is None else f"{count / 2**20:.2f} MiB"
