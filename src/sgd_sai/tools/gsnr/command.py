"""`sgd-sai gsnr` on the command line: a model, block by block, at the first gradient and over time."""

from __future__ import annotations

import argparse
from typing import Any

from sgd_sai.cli import CommandError, console
from sgd_sai.diagnostics import GSNRRecorder
from sgd_sai.lab import arguments, provenance
from sgd_sai.tools import options, output
from sgd_sai.tools.gsnr import page, record
from sgd_sai.tools.gsnr.cost import Cost, measure_cost
from sgd_sai.tools.gsnr.gains import trace_all
from sgd_sai.tools.workload import Workload, load_workload

_NARROW = ("block", "d", "G_snr", "G/√d", "scale", "SGD-SaI", "AdamW", "flags")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sgd-sai gsnr`."""
    options.add_shared(parser)
    parser.add_argument(
        "--lr", default="1e-3", metavar="X", help="AdamW's lr, to compare the updates at (default: 1e-3)"
    )
    parser.add_argument(
        "--steps", metavar="N", help="train N steps with each optimizer: G_snr and local gains over time"
    )
    parser.add_argument("--cost", action="store_true", help="time the recorder on this model instead")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and draw if asked to; 0."""
    lr = arguments.learning_rate("--lr", args.lr)
    steps = None if args.steps is None else arguments.integer("--steps", args.steps, least=1)
    shared = options.checked(args)
    try:
        workload = load_workload(args.workload, seed=shared.seed, clip=shared.clip)
        if args.cost:
            return _cost(workload, args)
        loss = workload.backward(0)
        first = workload.measure()
        found = record.build(workload, first, loss, lr)
        if steps is not None:
            with output.progress() as watch:
                traces = trace_all(workload, first, lr, steps, watch)
            found["training"] = {name: vars(trace) for name, trace in traces.items()}
            found["sentences"] += record.training_sentences(traces)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return output.give(found | provenance.record(), args, page=page.build, text=_print)


def _print(found: dict[str, Any]) -> None:
    wanted = record.COLUMNS if console.width() >= 130 else _NARROW
    rows = [
        [cell for name, cell in zip(record.COLUMNS, record.cells(row), strict=True) if name in wanted]
        for row in found["blocks"]
    ]
    console.print_table(
        f"{found['workload']}: the first gradient. SGD-SaI, AdamW: RMS of the first update, each at its lr",
        wanted,
        rows,
        words=record.WORDS,
    )
    for sentence in found["sentences"]:
        console.print_sentence(sentence)
    for name, trace in found.get("training", {}).items():
        if trace["losses"]:
            first, last = trace["losses"][0], trace["losses"][-1]
            gains = [values[0] for values in trace["gains"].values() if values and values[0]]
            moved = "no block moved at the first step"
            if gains:
                moved = f"local gain of its blocks at the first step {min(gains):.2g} to {max(gains):.2g}"
            console.print_sentence(f"{name}, lr {trace['lr']:.3g}: loss {first:.4g} → {last:.4g}; {moved}.")


def _cost(workload: Workload, args: argparse.Namespace) -> int:
    cost: Cost = measure_cost(workload)
    if args.json:
        found = {"workload": workload.name, **vars(cost), "share": cost.share, **provenance.record()}
        output.print_json(found)
    else:
        every = GSNRRecorder(workload.named).every
        console.print_line(
            f"{workload.name}: one record {1e3 * cost.record_s:.2f} ms, one training step "
            f"{1e3 * cost.step_s:.2f} ms (medians of {cost.runs}); at one record every {every} steps the "
            f"recorder adds {100 * cost.share:.2f} % of the step time"
        )
    return 0
