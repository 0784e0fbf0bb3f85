"""The results of the study, task by task: README and docs/study.md."""

from __future__ import annotations

from scripts.tables.markdown import RESULTS, table
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.reading import read_runs
from sgd_sai.lab.summary import by_task, cells

STUDY = RESULTS / "study"
TASKS = ("cnn", "vit", "gpt", "lora", "diffusion")


def outcome() -> str:
    """Return the results of the study, a row a task."""
    tasks = by_task(read_runs([STUDY]))
    names = ("sgd-sai", "adamw", "sgd")
    labels = [OPTIMIZERS[name].label for name in names]
    rows = [["held out, mean of five seeds", *labels, "SGD-SaI − AdamW, 95 % interval", "their lr"]]
    for task in tasks:
        title = f"{task.about['title']}, {task.about['metric'].removeprefix('val_')}"
        shown = [row for name in names if (row := task.best(name))]
        means, rates = zip(*((task.shown_mean(row), f"{row.lr:g}") for row in shown), strict=True)
        rows.append([title, *means, cells.difference(task, shown[0]), " · ".join(rates)])
    return table(*rows).replace("\u00a0", " ")


def study(task: str) -> str:
    """The results of a task of the study."""
    (found,) = by_task([run for run in read_runs([STUDY]) if run.record.config.task == task])
    metric = found.about["metric"]
    measured = "accuracy" if found.by_accuracy else f"loss, {found.about['unit']}"
    rows = [
        ["held out", measured, "difference to AdamW, 95 % interval", "as good as AdamW ends", "lr", "trials"]
    ]
    for row in found.ranking:
        rows.append(
            [
                row.label,
                cells.result(row, metric),
                cells.difference(found, row),
                cells.reached(found, row) if row is not found.base else cells.MISSING,
                f"{row.lr:g}",
                str(row.trials),
            ]
        )
    seeds = len(found.ranking[0].runs)
    first = found.rows[0].runs[0].record
    return (
        f"{table(*rows)}\n\nMean ± standard deviation of {seeds} seeds, {first.config.steps} steps; "
        f"{first.machine['cores']} cores of {first.machine['processor']}, {first.date[:10]}."
    )
