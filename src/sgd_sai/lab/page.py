"""The report: one HTML file with everything in it, a pure function of the records."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from statistics import median
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from sgd_sai.lab import cells, sweep_page
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import BlockGSNR, Record, Run
from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.summary import Row, TaskSummary, by_task, sentences
from sgd_sai.lab.tasks.gpt import BAR

_FIRST_SCHEDULE = str(Schedule())  # of records that do not name theirs


def build(runs: Sequence[Run]) -> str:
    """The page about the runs."""
    tasks = by_task(runs)
    source = files("sgd_sai.lab").joinpath("template")
    charts = [chart for task in tasks for chart in _charts(task)]
    swept = [run for run in runs if run.record.config.weight_decay is not None]
    return Template(source.joinpath("report.html").read_text()).substitute(
        style=sweep_page.STYLE * bool(swept) + source.joinpath("report.css").read_text(),
        script=source.joinpath("report.js").read_text(),
        plotly=get_plotlyjs(),
        charts=json.dumps(charts, allow_nan=False).replace("</", "<\\/"),
        sentences="".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(tasks)),
        tasks="".join(_section(task) for task in tasks),
        sweeps=_sweeps(swept) if swept else "",
        provenance=_provenance([run.record for run in runs]),
    )


def _sweeps(runs: Sequence[Run]) -> str:
    return f"<section><h2>Learning rate × weight decay</h2>{sweep_page.surfaces(runs)}</section>"


def _charts(task: TaskSummary) -> list[dict[str, Any]]:
    """What the script draws: per chart its place, its axes, and its lines."""
    lines = [line for row in task.rows for run in row.runs for line in run.evaluations]
    charts: list[dict[str, Any]] = [
        {"id": f"{task.name}-val_loss", "range": _loss_range(lines), "lines": _curves(task, "val_loss")}
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
    return [*charts, tuning, *_gsnr_charts(task)]


def _loss_range(lines: Sequence[dict[str, float]]) -> list[float] | None:
    """From the lowest loss to the highest, of which at most half is above the untrained model's."""
    if not lines:
        return None
    losses = [line["val_loss"] for line in lines]
    low, high = min(losses), max(losses)
    high = min(high, 2 * max(line["val_loss"] for line in lines if line["step"] == 0) - low)
    margin = 0.05 * (high - low)
    return [low - margin, high + margin]


def _gsnr_charts(task: TaskSummary) -> list[dict[str, Any]]:
    charts = []
    for row, gsnr in task.gsnr:
        # One line with gaps: block after block.
        line = {
            "label": row.label,
            "colours": OPTIMIZERS[row.optimizer].colour,
            "blocks": list(gsnr.d),
            "steps": list(gsnr.steps),
            "values": list(gsnr.steps.values()),
        }
        place = f"{task.name}-gsnr-{row.optimizer}"
        charts.append({"id": place, "x": "steps", "log": True, "range": _around(gsnr), "lines": [line]})
    return charts


def _around(gsnr: BlockGSNR) -> tuple[float, float]:
    low, high = gsnr.decades
    return low - 0.05, high + 0.05  # so that the powers of ten themselves are shown


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
    blocks = []
    for row, gsnr in task.gsnr:
        note = f"a line each, seed {row.runs[0].record.config.seed}{_moved(gsnr)}"
        blocks.append(_figure(f"{task.name}-gsnr-{row.optimizer}", f"g-SNR of blocks, {row.label}", note))
    return (
        f'<section id="{escape(task.name)}"><h2>{escape(task.title)}</h2>'
        f'<p class="about">{escape(about["about"])}. {escape(about["data"])}.</p>'
        f'<p class="legend">{legend}</p>{_side_by_side(charts)}{_table(task)}'
        f"{_side_by_side(blocks)}{_side_by_side(_samples(task))}</section>"
    )


def _side_by_side(figures: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _samples(task: TaskSummary) -> list[str]:
    """What the first model of each row makes, if it makes pictures or a text."""
    figures = []
    for row in task.rows:
        label, run = escape(row.label), row.runs[0]
        if run.pictures is not None:
            picture = b64encode(run.pictures).decode()
            made, note = f'<img alt="{label}" src="data:image/png;base64,{picture}">', "from the same noise"
        elif run.text is not None:
            prompt, _, text = (escape(_printable(part)) for part in run.text.partition(BAR))
            made, note = f"<pre><b>{prompt}</b>{text}</pre>", "after the same held-out text, in bold"
        else:
            continue
        figures.append(f"<figure><figcaption>{label} <small>{note}</small></figcaption>{made}</figure>")
    return figures


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)


def _moved(gsnr: BlockGSNR) -> str:
    spans = gsnr.spans
    return f"; the median block's largest is {median(spans):.2f} × its smallest" if spans else ""


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
        (f"Validation loss, {task.about['unit']}", [_result(task, row, "val_loss") for row in task.rows]),
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
            f'<td data-name="{escape(name)}"><span>{column[index]}</span></td>' for name, column in columns
        )
        + "</tr>"
        for index in range(len(task.rows))
    )
    return f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _against(task: TaskSummary) -> list[tuple[str, list[str]]]:
    """The columns about AdamW, if it was run beside others."""
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


def _provenance(records: Sequence[Record]) -> str:
    """Conditions, machines, versions, commands and dates, each said once."""
    machines = (
        f"{r.machine['processor']}, {r.machine['cores']} cores, {r.machine['memory_gib']} GiB, "
        f"{r.machine['system']}{_gpu(r)}, torch threads: {r.config.threads}"
        for r in records
    )
    versions = (", ".join(f"{name} {version}" for name, version in r.versions.items()) for r in records)
    conditions = (
        f"{r.config.task}: κ = {_shrink(r)}, {_clipping(r.task['clip'])}, "
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


def _shrink(record: Record) -> str:
    return f"{record.task['shrink']:g}" if record.config.weight_decay is None else "lr × λ"


def _gpu(record: Record) -> str:
    return f", {record.machine['gpu']}" if "gpu" in record.machine else ""


def _clipping(clip: float | None) -> str:
    return "no clipping" if clip is None else f"gradients clipped to norm {clip:g}"


def _once(lines: Iterable[str]) -> list[str]:
    return [escape(line) for line in dict.fromkeys(lines)]
