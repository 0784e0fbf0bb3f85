"""The table of results of a task."""

from __future__ import annotations

from html import escape

from sgd_sai import html
from sgd_sai.lab.summary import Row, TaskSummary, cells


def results(task: TaskSummary) -> str:
    """Return the table as HTML, a row per optimizer."""
    metric = task.about["metric"]
    columns: list[tuple[str, list[str]]] = [
        ("Optimizer", [f"<b>{escape(row.label)}</b>" for row in task.rows])
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
    rows = [[f"<span>{column[index]}</span>" for _, column in columns] for index in range(len(task.rows))]
    return html.table([name for name, _ in columns], rows, kind="results")


def _against(task: TaskSummary) -> list[tuple[str, list[str]]]:
    """Return the columns about AdamW, if it was run beside others."""
    if task.base is None:
        return []
    label = escape(task.base.label)
    return [
        (f"Difference to {label}, 95 % interval", [cells.difference(task, row) for row in task.rows]),
        (f"As good as {label} ends, at", [cells.reached(task, row) for row in task.rows]),
    ]


def _result(task: TaskSummary, row: Row, metric: str) -> str:
    shown = cells.result(row, metric)
    if metric != task.about["metric"]:
        return shown
    if row.mean(metric) is None:
        return _troubles(row) or shown
    best = task.ranking[0].mean(metric) == row.mean(metric)
    return (f"<strong>{shown}</strong>" if best else shown) + _troubles(row)


def _troubles(row: Row) -> str:
    return "".join(f' <span class="trouble">{escape(trouble)}</span>' for trouble in row.troubles)


def _steps(row: Row) -> str:
    runs = f" × {len(row.runs)} seeds" if len(row.runs) > 1 else ""
    return f"{row.runs[0].record.config.steps}{runs}"


def _grid(row: Row) -> str:
    grid = [row.lr] if row.tuning is None else row.tuning["grid"]
    rates = " · ".join(f"<b>{rate:.3g}</b>" if rate == row.lr else f"{rate:.3g}" for rate in grid)
    trouble = ' class="trouble"' if row.on_edge else ""
    return f'<span class="grid">{rates}</span><br><small{trouble}>{cells.tuning(row)}</small>'


def _number(value: float | None, spec: str, unit: str) -> str:
    return cells.MISSING if value is None else format(value, spec) + unit


def _bytes(count: int | None) -> str:
    return cells.MISSING if count is None else f"{count / 2**20:.2f} MiB"
