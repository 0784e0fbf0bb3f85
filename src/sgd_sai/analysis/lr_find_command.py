"""`sgd-sai lr-find`: a range test with a picture, or AdamW's tuned learning rates transferred."""

from __future__ import annotations

import argparse
import math
from typing import Any

from sgd_sai import gsnr
from sgd_sai.analysis import output, page
from sgd_sai.analysis.blocks import Measurement, measure_blocks
from sgd_sai.analysis.learning_rate import transfer_lr
from sgd_sai.analysis.page import Axis, Chart, Section
from sgd_sai.analysis.range_test import RangeTest, range_test
from sgd_sai.analysis.workload import load
from sgd_sai.cli import CommandError
from sgd_sai.gsnr import Normalize
from sgd_sai.lab import arguments, optimizers, tuned
from sgd_sai.lab.tasks import TASKS

#: AdamW's learning rates that the range covers, where none is given.
_LOW, _HIGH = 1e-6, 1.0
#: Optimizers of the lab whose lr has another form than the paper's.
_FORMS: dict[str, Normalize] = {"release": False, "sgd-sai-raw": False, "sgd-sai-rms": "rms"}
_LINES = 16  # of the picture on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sgd-sai lr-find`."""
    output.add_shared(parser, optional=True)
    parser.add_argument(
        "--optimizer",
        default="sgd-sai",
        metavar="NAME",
        help=f"{', '.join(optimizers.OPTIMIZERS)} (default: sgd-sai)",
    )
    parser.add_argument(
        "--from", dest="low", metavar="X", help=f"first lr (default: what AdamW's {_LOW:g} is for it)"
    )
    parser.add_argument(
        "--to", dest="high", metavar="X", help=f"last lr (default: what AdamW's {_HIGH:g} is for it)"
    )
    parser.add_argument("--steps", default="100", metavar="N", help="of the rise (default: 100)")
    parser.add_argument(
        "--tuned",
        action="store_true",
        help="no range test: AdamW's tuned lr of the lab's tasks (all, or WORKLOAD: names with commas), "
        "transferred, beside SGD-SaI's own",
    )


def run(args: argparse.Namespace) -> int:
    """Find, print, and draw if asked to; 0."""
    if args.workload is None and not args.tuned:
        raise CommandError("WORKLOAD is missing: a task, or module:factory; or give --tuned")
    try:
        return _tuned(args) if args.tuned else _range(args)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _range(args: argparse.Namespace) -> int:
    name = args.optimizer
    if name not in optimizers.OPTIMIZERS:
        raise CommandError(f"--optimizer: given {name!r}; allowed: {', '.join(optimizers.OPTIMIZERS)}")
    steps = arguments.integer("--steps", args.steps, least=2)
    shared = output.checked(args)
    ends = [
        None if given is None else arguments.learning_rate(option, given)
        for option, given in (("--from", args.low), ("--to", args.high))
    ]
    workload = load(args.workload, seed=shared.seed, clip=shared.clip)
    workload.backward(0)
    ratio = _ratio(measure_blocks(workload.named), name)
    low, high = ends[0] or _LOW * ratio, ends[1] or _HIGH * ratio
    if low >= high:
        raise CommandError(f"--from: given {low:.3g}; allowed: less than --to, {high:.3g}")
    optimizer = optimizers.build(name, workload.model, low, 0.0)
    with output.progress() as watch:
        found = range_test(
            workload, optimizer, low, high, steps, lambda step, lr, loss: watch(f"lr {lr:.2e}", step, loss)
        )
    record = {
        "workload": workload.name,
        "optimizer": name,
        **vars(found),
        "steepest": found.steepest,
        "lowest": found.lowest,
        "adamw_ratio": ratio,
        "sentences": _sentences(found, optimizers.OPTIMIZERS[name].label, ratio),
        **output.provenance(),
    }
    if args.html is not None:
        output.write(args.html, _page(record))
    if args.json:
        output.print_json(record)
    else:
        _print(record)
    return 0


def _ratio(first: Measurement, optimizer: str) -> float:
    """η/η_AdamW for which the first updates are equally large; 1 where that is not known."""
    if optimizer == "release" or optimizer.startswith("sgd-sai"):
        return first.adam_lr_ratio(_FORMS.get(optimizer, True))
    if optimizer == "sgd":
        return 1.0 / gsnr.rms_normalizer([1.0] * len(first.latched), [b.moments for b in first.latched])
    return 1.0


def _sentences(found: RangeTest, label: str, ratio: float) -> list[str]:
    steepest = found.steepest
    said = [
        f"The loss of {label} falls fastest at lr {steepest:.3g}."
        if steepest is not None
        else f"The loss of {label} never falls: begin the range lower, or take more steps.",
        f"It is lowest at lr {found.lowest:.3g}"
        + (
            f" and breaks at lr {found.lrs[-1]:.3g}."
            if found.broke
            else "; it has not broken at the last lr."
        ),
    ]
    if steepest is not None:
        said.append(
            "A peak learning rate is usually sought between the two. A range test sees a few steps at each "
            "rate, not where a whole run at that rate ends."
        )
    if ratio != 1.0:
        said.append(f"AdamW's lr times {ratio:.4g} is as large a first update.")
    return said


def _print(record: dict[str, Any]) -> None:
    console = output.console()
    smoothed, lrs = record["smoothed"], record["lrs"]
    shown = range(0, len(lrs), max(1, len(lrs) // _LINES))
    floor, top = min(smoothed), min(max(smoothed), 2 * smoothed[0])
    rows = []
    for place in shown:
        part = (smoothed[place] - floor) / (top - floor) if top > floor else 0.0
        rows.append([f"{lrs[place]:.2e}", f"{smoothed[place]:.4f}", "█" * round(40 * min(part, 1.0))])
    output.print_table(
        console,
        f"{record['workload']}: loss of {record['optimizer']} while lr rises",
        ("lr", "loss", ""),
        rows,
        ("",),
    )
    for sentence in record["sentences"]:
        console.print(f"• {sentence}", highlight=False)


def _page(record: dict[str, Any]) -> str:
    entry = optimizers.OPTIMIZERS[record["optimizer"]]
    lrs, losses = record["lrs"], record["losses"]
    top = 1.15 * max(record["smoothed"][0], *losses[: max(1, len(losses) // 4)])
    bottom = min(losses) - 0.08 * (top - min(losses))
    marks = [
        {
            "x": [lr, lr],
            "y": [bottom, top],
            "name": f"{what}: {lr:.3g}",
            "dash": dash,
        }
        for what, lr, dash in (("steepest", record["steepest"], "dot"), ("lowest", record["lowest"], "dash"))
        if lr is not None
    ]
    lines = [
        *marks,
        {"x": lrs, "y": losses, "name": "loss", "colours": entry.colour, "opacity": 0.35, "silent": True},
        {"x": lrs, "y": record["smoothed"], "name": "smoothed", "colours": entry.colour, "width": 2.5},
    ]
    chart = Chart(
        "range",
        "Loss while lr rises",
        Axis("lr", log=True),
        Axis(range=(bottom, top)),
        lines,
        "faint: of each step; dotted: steepest; dashed: lowest",
    )
    section = Section(
        entry.label,
        f"{len(lrs)} steps without decay, each with an lr larger than the last by the same factor.",
        charts=[chart],
    )
    return page.build(
        f"Learning rate for {record['workload']}",
        record["sentences"],
        [section],
        output.provenance_lines(record),
    )


def _tuned(args: argparse.Namespace) -> int:
    """AdamW's tuned lr of each task, transferred, beside SGD-SaI's tuned one."""
    entries = tuned.read(tuned.OWN)
    rows: list[dict[str, Any]] = []
    for task in arguments.names("WORKLOAD", args.workload or "all", TASKS):
        pair = entries.get(task, {})
        if {"adamw", "sgd-sai"} <= set(pair):
            adamw, own = pair["adamw"], pair["sgd-sai"]
            workload = load(task, seed=adamw["seed"])
            workload.backward(0)
            transferred = transfer_lr(workload.model, adamw["lr"]).lr
            points = {point["lr"]: point.get(own["metric"]) for point in own["points"]}
            nearest = min(points, key=lambda lr: abs(math.log(lr / transferred)))
            rows.append(
                {
                    "task": task,
                    "adamw": adamw["lr"],
                    "transferred": transferred,
                    "sgd_sai": own["lr"],
                    "ratio": own["lr"] / transferred,
                    "metric": own["metric"],
                    "tuned_metric": points[own["lr"]],
                    "nearest": nearest,
                    "nearest_metric": points[nearest],
                    "grid_ratio": own["grid"][1] / own["grid"][0],
                }
            )
    if not rows:
        raise CommandError("--tuned: none of these tasks has tuned learning rates of both adamw and sgd-sai")
    record = {"tasks": rows, **output.provenance()}
    if args.json:
        output.print_json(record)
        return 0
    numbers = {
        "AdamW, tuned": "adamw",
        "transferred": "transferred",
        "SGD-SaI, tuned": "sgd_sai",
        "tuned / transferred": "ratio",
        "result at tuned": "tuned_metric",
        "at the point nearest to transferred": "nearest_metric",
    }
    columns = ("task", *numbers, "metric")
    cells = [
        [row["task"], *(_shown(row[key]) for key in numbers.values()), row["metric"].replace("_", " ")]
        for row in rows
    ]
    console = output.console()
    output.print_table(console, "AdamW's tuned lr as SGD-SaI's", columns, cells, ("task", "metric"))
    off = max(abs(math.log(row["ratio"], row["grid_ratio"])) for row in rows)
    console.print(f"• At most {off:.1f} steps of the tuning grid apart.", highlight=False)
    return 0


def _shown(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.3g}"
