"""The report: one HTML file with everything in it, a pure function of the records."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from sgd_sai.lab import statistics
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Record
from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.summary import Row, TaskSummary, sentences

_MISSING = "–"
BASE = "adamw"  # what the others are compared with
_FIRST_SCHEDULE = str(Schedule())  # of records that do not name theirs


def build(tasks: Sequence[TaskSummary]) -> str:
    """The page about `tasks`."""
    source = files("sgd_sai.lab").joinpath("template")
    charts = [chart for task in tasks for chart in _charts(task)]
    return Template(source.joinpath("report.html").read_text()).substitute(
        style=source.joinpath("report.css").read_text(),
        script=source.joinpath("report.js").read_text(),
        plotly=get_plotlyjs(),
        charts=json.dumps(charts, allow_nan=False).replace("</", "<\\/"),
        sentences="".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(tasks)),
        tasks="".join(_section(task) for task in tasks),
        provenance=_provenance([run.record for task in tasks for row in task.rows for run in row.runs]),
    )


def _charts(task: TaskSummary) -> list[dict[str, Any]]:
    """What the script draws: per chart its place, its axes, and its lines."""
    lines = [line for row in task.rows for run in row.runs for line in run.evaluations]
    losses = [line["val_loss"] for line in lines] or [1.0]
    # A loss that shoots up in between does not set the scale: the untrained model's does.
    top = 1.1 * max((line["val_loss"] for line in lines if line["step"] == 0), default=1.0)
    loss_range = [0 if task.by_accuracy else 0.9 * min(losses), top]
    charts: list[dict[str, Any]] = [
        {"id": f"{task.name}-val_loss", "range": loss_range, "lines": _curves(task, "val_loss")}
    ]
    if accuracies := [line["val_accuracy"] for line in lines if "val_accuracy" in line]:
        charts.append(
            {
                "id": f"{task.name}-val_accuracy",
                "range": [0, min(1.03, 1.1 * max(accuracies))],
                "percent": True,
                "lines": _curves(task, "val_accuracy"),
            }
        )
    tuning = {"id": f"{task.name}-tuning", "x": "lr", "percent": task.by_accuracy, "lines": _tuning(task)}
    return [*charts, tuning]


def _curves(task: TaskSummary, metric: str) -> list[dict[str, Any]]:
    lines = []
    for row in task.rows:
        for run in row.runs:
            if metric == "val_loss":
                lines.append({**_line(row, run.training, "train_loss"), "faint": True})
            lines.append(_line(row, run.evaluations, metric))
    return lines


def _line(row: Row, points: Iterable[dict[str, float]], metric: str) -> dict[str, Any]:
    points = list(points)
    return {
        "label": row.label,
        "colours": OPTIMIZERS[row.optimizer].colour,
        "steps": [point["step"] for point in points],
        "seconds": [point["seconds"] for point in points],
        "y": [point[metric] for point in points],
    }


def _tuning(task: TaskSummary) -> list[dict[str, Any]]:
    lines = []
    for row in task.rows:
        points = [point for point in (row.tuning or {}).get("points", []) if task.about["metric"] in point]
        if points:
            line = {"label": row.label, "colours": OPTIMIZERS[row.optimizer].colour}
            line["lr"] = [point["lr"] for point in points]
            line["y"] = [point[task.about["metric"]] for point in points]
            lines.append(line)
    return lines


def _section(task: TaskSummary) -> str:
    about = task.about
    legend = "".join(
        f'<span class="key" style="--light:{light};--dark:{dark}">{escape(row.label)}</span>'
        for row in task.rows
        for light, dark in [OPTIMIZERS[row.optimizer].colour]
    )
    charts = [_figure(f"{task.name}-val_loss", f"Validation loss, {about['unit']}", "faint: training loss")]
    if any("val_accuracy" in line for row in task.rows for run in row.runs for line in run.evaluations):
        charts.append(
            _figure(f"{task.name}-val_accuracy", "Validation accuracy", "on the same held-out data for all")
        )
    if _tuning(task):
        metric = "accuracy" if task.by_accuracy else "loss"
        note = f"from tuning, seed {_seeds_of_tuning(task)}"
        charts.append(_figure(f"{task.name}-tuning", f"Final {metric} by learning rate", note))
    return (
        f'<section id="{escape(task.name)}"><h2>{escape(about["title"])}</h2>'
        f'<p class="about">{escape(about["about"])}. {escape(about["data"])}.</p>'
        f'<p class="legend">{legend}</p><div class="charts">{"".join(charts)}</div>{_table(task)}'
        f"{_samples(task)}</section>"
    )


def _samples(task: TaskSummary) -> str:
    """What each optimizer's first model makes, if it makes pictures."""
    shown = [(row.label, run.pictures) for row in task.rows for run in row.runs[:1] if run.pictures]
    figures = "".join(
        f"<figure><figcaption>{escape(label)} <small>from the same noise</small></figcaption>"
        f'<img alt="{escape(label)}" src="data:image/png;base64,{b64encode(png).decode()}"></figure>'
        for label, png in shown
    )
    return f'<div class="charts samples">{figures}</div>' if figures else ""


def _seeds_of_tuning(task: TaskSummary) -> str:
    return ", ".join(sorted({str(row.tuning["seed"]) for row in task.rows if row.tuning}))


def _figure(place: str, title: str, note: str) -> str:
    caption = f"{escape(title)} <small>{escape(note)}</small>"
    return f'<figure><figcaption>{caption}</figcaption><div class="chart" id="{place}"></div></figure>'


def _table(task: TaskSummary) -> str:
    metric = task.about["metric"]
    columns: list[tuple[str, list[str]]] = [
        ("Optimizer", [f"<b>{escape(row.label)}</b>" for row in task.rows])
    ]
    if task.by_accuracy:
        columns.append(("Validation accuracy", [_result(task, row, metric) for row in task.rows]))
    columns += [
        (f"Validation loss, {task.about['unit']}", [_loss(task, row) for row in task.rows]),
        *_against(task),
        ("Steps", [_steps(row) for row in task.rows]),
        ("Training", [_number(row.mean("seconds"), ".0f", " s") for row in task.rows]),
        ("Optimizer state", [_bytes(row.state_bytes) for row in task.rows]),
        ("optimizer.step", [_number(row.step_ms, ".2f", " ms") for row in task.rows]),
        ("Learning rate, of its grid", [_grid(row) for row in task.rows]),
    ]
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{escape(name)}"><span>{cells[index]}</span></td>' for name, cells in columns
        )
        + "</tr>"
        for index in range(len(task.rows))
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _against(task: TaskSummary) -> list[tuple[str, list[str]]]:
    """The columns about AdamW, if it was run beside others."""
    base = next((row.runs for row in task.rows if row.optimizer == BASE), None)
    if base is None or len(task.rows) < 2:
        return []
    metric = task.about["metric"]
    differences, times = [], []
    for row in task.rows:
        own = row.runs is base
        found = None if own else statistics.difference(row.runs, base, metric)
        differences.append(_MISSING if found is None else _difference(task, found))
        moment = statistics.reached(row.runs, base, metric, task.by_accuracy)
        times.append(_MISSING if moment is None else _moment(moment))
    return [("Difference to AdamW, 95 % interval", differences), ("As good as AdamW ends, at", times)]


def _difference(task: TaskSummary, found: statistics.Difference) -> str:
    scale, digits, unit = (100, 1, " points") if task.by_accuracy else (1, 4, "")

    def shown(value: float) -> str:
        return f"{scale * value:+.{digits}f}".replace("-", "\u2212")

    if found.interval is None:
        return f"{shown(found.mean)}{unit} <small>one seed</small>"
    low, high = found.interval
    return f"{shown(found.mean)} ({shown(low)} to {shown(high)}){unit} <small>{found.pairs} seeds</small>"


def _moment(moment: statistics.Reached) -> str:
    if moment.steps is None or moment.seconds is None:
        return "not reached"
    some = (
        f" <small>{moment.reached} of {moment.pairs} seeds</small>" if moment.reached < moment.pairs else ""
    )
    return f"step {moment.steps:.0f}, {moment.seconds:.0f} s{some}"


def _result(task: TaskSummary, row: Row, metric: str) -> str:
    value, spread = row.mean(metric), row.spread(metric)
    if value is None:
        return _troubles(row) or _MISSING
    shown = f"{100 * value:.1f}" if metric == "val_accuracy" else f"{value:.4f}"
    if spread is not None:
        shown += f" ± {100 * spread:.1f}" if metric == "val_accuracy" else f" ± {spread:.4f}"
    if metric == "val_accuracy":
        shown += " %"
    best = task.ranking[0].mean(metric) == value and metric == task.about["metric"]
    return (f"<strong>{shown}</strong>" if best else shown) + _troubles(row)


def _loss(task: TaskSummary, row: Row) -> str:
    return (
        _result(task, row, "val_loss") if not task.by_accuracy else _number(row.mean("val_loss"), ".4f", "")
    )


def _troubles(row: Row) -> str:
    return "".join(f' <span class="trouble">{escape(trouble)}</span>' for trouble in row.troubles)


def _steps(row: Row) -> str:
    counts = sorted({run.record.config.steps for run in row.runs})
    runs = f" × {len(row.runs)} seeds" if len(row.runs) > 1 else ""
    return ", ".join(map(str, counts)) + runs


def _grid(row: Row) -> str:
    used = ", ".join(f"{rate:.3g}" for rate in row.rates)
    if row.tuning is None:
        return f"<b>{used}</b> <small>given</small>"
    grid = " · ".join(
        f"<b>{rate:.3g}</b>" if rate in row.rates else f"{rate:.3g}" for rate in row.tuning["grid"]
    )
    return f'<span class="grid">{grid}</span>'


def _number(value: float | None, spec: str, unit: str) -> str:
    return _MISSING if value is None else format(value, spec) + unit


def _bytes(count: int | None) -> str:
    return _MISSING if count is None else f"{count / 2**20:.2f} MiB"


def _provenance(records: Sequence[Record]) -> str:
    """Conditions, machines, versions, commands and dates, each said once."""
    machines = (
        f"{r.machine['processor']}, {r.machine['cores']} cores, {r.machine['memory_gib']} GiB, "
        f"{r.machine['system']}{_gpu(r)}, torch threads: {r.config.threads}"
        for r in records
    )
    versions = (", ".join(f"{name} {version}" for name, version in r.versions.items()) for r in records)
    conditions = (
        f"{r.config.task}: κ = {r.task['shrink']:g}, {_clipping(r.task['clip'])}, "
        f"{r.task.get('schedule', _FIRST_SCHEDULE)}"
        for r in records
    )
    dates = sorted(r.date[:10] for r in records)
    items = {
        "Machine": _once(machines),
        "Versions": _once(versions),
        "Conditions": _once(conditions),
        "Command": [f"<code>{line}</code>" for line in _once(r.command for r in records)],
        "Date": _once((dates[0], dates[-1])),
    }
    return "".join(
        f"<dt>{name}</dt>" + "".join(f"<dd>{line}</dd>" for line in lines) for name, lines in items.items()
    )


def _gpu(record: Record) -> str:
    return f", {record.machine['gpu']}" if "gpu" in record.machine else ""


def _clipping(clip: float | None) -> str:
    return "no clipping" if clip is None else f"gradients clipped to norm {clip:g}"


def _once(lines: Iterable[str]) -> list[str]:
    return [escape(line) for line in dict.fromkeys(lines)]
