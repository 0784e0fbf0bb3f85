"""The page of the report, a pure function of the records."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from importlib.resources import files

from sgd_sai import html
from sgd_sai.html import Content, Html, Row, Section, element
from sgd_sai.lab import samples
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import Record, Run
from sgd_sai.lab.report import charts
from sgd_sai.lab.report.table import results
from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.summary import TaskSummary, by_task
from sgd_sai.lab.summary.sentences import sentences
from sgd_sai.lab.sweep import page as sweep_page

_FIRST_SCHEDULE = str(Schedule())  # of records that do not name theirs
_NOTE = element(
    "p",
    "This page is made of the runs' records alone: ",
    element("code", "sgd-sai report RUNS --out report.html"),
    " rebuilds it and its figures.",
)


def build(runs: Sequence[Run]) -> str:
    """Return the page about the runs."""
    tasks = by_task(runs)
    sections = [_section(task) for task in tasks]
    swept = [run for run in runs if run.record.config.weight_decay is not None]
    if swept:
        sections.append(Section("Learning rate × weight decay", "", [sweep_page.surfaces(swept)]))
    return html.build(
        "SGD-SaI compared",
        sentences(tasks),
        sections,
        _provenance([run.record for run in runs]),
        choices=("Curves against", charts.AGAINST),
        method=Html(files("sgd_sai.lab.report").joinpath("method.html").read_text("utf-8")),
        note=_NOTE,
        style=sweep_page.STYLE if swept else "",
    )


def _section(task: TaskSummary) -> Section:
    return Section(
        task.title,
        f"{task.about['about']}. {task.about['data']}.",
        [
            Row(charts.of_results(task)),
            results(task),
            Row(charts.of_gsnr(task)),
            html.side_by_side(_samples(task)),
        ],
        {row.label: OPTIMIZERS[row.optimizer].colour for row in task.rows},
        id=task.name,
    )


def _samples(task: TaskSummary) -> list[Html]:
    """Return the pictures or the text that the first model of each row makes, if it makes any."""
    figures = []
    for row in task.rows:
        run = row.runs[0]
        if run.pictures is not None:
            picture = b64encode(run.pictures).decode()
            made = element("img", alt=row.label, src=f"data:image/png;base64,{picture}")
            note = "from the same noise"
        elif run.text is not None:
            prompt, text = samples.parted(run.text)
            made = element("pre", element("b", prompt), text)
            note = "after the same held-out text, in bold"
        else:
            continue
        figures.append(html.figure(row.label, note, made))
    return figures


def _provenance(records: Sequence[Record]) -> dict[str, Sequence[Content]]:
    """Return conditions, machines, versions, commands and dates, each said once."""
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
    return {
        "Machine": _once(machines),
        "Versions": _once(versions),
        "Conditions": _once(conditions),
        "Command": [element("code", line) for line in _once(r.command for r in records)],
        "Date": _once((dates[0], dates[-1])),
    }


def _shrink(record: Record) -> str:
    return f"{record.task['shrink']:g}" if record.config.weight_decay is None else "lr × λ"


def _gpu(record: Record) -> str:
    return f", {record.machine['gpu']}" if "gpu" in record.machine else ""


def _clipping(clip: float | None) -> str:
    return "no clipping" if clip is None else f"gradients clipped to norm {clip:g}"


def _once(lines: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(lines)]
