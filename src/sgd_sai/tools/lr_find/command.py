"""`sgd-sai lr-find` on the command line: a range test with a picture, or a transfer of tuned rates."""

from __future__ import annotations

import argparse
from typing import Any

from sgd_sai import gsnr
from sgd_sai.cli import CommandError, console
from sgd_sai.diagnostics import Measurement
from sgd_sai.gsnr import Normalize
from sgd_sai.lab import arguments, optimizers, provenance
from sgd_sai.tools import options, output
from sgd_sai.tools.lr_find import page, transfer
from sgd_sai.tools.lr_find.range_test import RangeTest, range_test
from sgd_sai.tools.workload import load_workload

#: AdamW's learning rates that the range covers, where none is given.
_LOW, _HIGH = 1e-6, 1.0
#: Optimizers of the lab whose lr has another form than the paper's.
_FORMS: dict[str, Normalize] = {"release": False, "sgd-sai-raw": False, "sgd-sai-rms": "rms"}
_LINES = 16  # of the picture on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sgd-sai lr-find`."""
    options.add_shared(parser, optional=True)
    parser.add_argument(
        "--optimizer",
        default="sgd-sai",
        metavar="NAME",
        help=f"{', '.join(optimizers.OPTIMIZERS)} (default: sgd-sai)",
    )
    parser.add_argument(
        "--from", dest="low", metavar="X", help=f"first lr (default: as large as AdamW's {_LOW:g})"
    )
    parser.add_argument(
        "--to", dest="high", metavar="X", help=f"last lr (default: as large as AdamW's {_HIGH:g})"
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
        return transfer.run(args.workload, as_json=args.json) if args.tuned else _range(args)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _range(args: argparse.Namespace) -> int:
    name = args.optimizer
    if name not in optimizers.OPTIMIZERS:
        raise CommandError(f"--optimizer: given {name!r}; allowed: {', '.join(optimizers.OPTIMIZERS)}")
    steps = arguments.integer("--steps", args.steps, least=2)
    shared = options.checked(args)
    ends = [
        None if given is None else arguments.learning_rate(option, given)
        for option, given in (("--from", args.low), ("--to", args.high))
    ]
    workload = load_workload(args.workload, seed=shared.seed, clip=shared.clip)
    workload.backward(0)
    ratio = _ratio(workload.measure(), name)
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
        **provenance.record(),
    }
    return output.give(record, args, page=page.build, text=_print)


def _ratio(first: Measurement, optimizer: str) -> float:
    """Return η/η_AdamW for which the first updates are equally large; 1 where that is not known."""
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
    smoothed, lrs = record["smoothed"], record["lrs"]
    shown = range(0, len(lrs), max(1, len(lrs) // _LINES))
    floor, top = min(smoothed), min(max(smoothed), 2 * smoothed[0])
    rows = []
    for place in shown:
        part = (smoothed[place] - floor) / (top - floor) if top > floor else 0.0
        rows.append([f"{lrs[place]:.2e}", f"{smoothed[place]:.4f}", "█" * round(40 * min(part, 1.0))])
    console.print_table(
        f"{record['workload']}: loss of {record['optimizer']} while lr rises",
        ("lr", "loss", ""),
        rows,
        words=("",),
    )
    for sentence in record["sentences"]:
        console.print_sentence(sentence)
