"""`sgd-sai memory`: the planner on the command line, as a table or as JSON."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sgd_sai.cli import CommandError
from sgd_sai.cli.console import print_json, print_table
from sgd_sai.files import as_json, write_json
from sgd_sai.memory import paper
from sgd_sai.memory.models import MODELS, load
from sgd_sai.memory.optimizers import PLANNED, select
from sgd_sai.memory.parameters import parameters
from sgd_sai.memory.planner import DTYPES, SHARDS, Plan, plan

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_NOTE = "– is not known and not counted. Activations, and what forward and backward hold, are not counted."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sgd-sai memory`."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"{', '.join(MODELS)}; the path of a transformers config.json; or module:factory of your own",
    )
    parser.add_argument(
        "--optimizer", default="all", metavar="NAMES", help=f"{', '.join(PLANNED)}, with commas"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of parameters and gradients (default: as built, fp32)"
    )
    parser.add_argument(
        "--state-dtype",
        choices=("fp32", "bf16", "8bit", "none"),
        help="of SGD-SaI's momentum (default: each)",
    )
    parser.add_argument("--gradient-release", action="store_true", help="the step runs inside backward")
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="number of ranks")
    parser.add_argument("--shard", choices=SHARDS, default="none", help="what the ranks divide")
    parser.add_argument("--fits", metavar="SIZE", help="mark what fits into, say, 24GiB")
    parser.add_argument("--paper", action="store_true", help="compare with the paper's table; needs no MODEL")
    parser.add_argument("--json", action="store_true", help="print JSON, exact bytes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write that JSON to FILE as well")


def run(args: argparse.Namespace) -> int:
    """Print the plans of MODEL, least total first, or the comparison with the paper; 0."""
    if args.paper and args.model is not None:
        raise CommandError(f"--paper: given with the model {args.model!r}; it has its own")
    if not args.paper and args.model is None:
        raise CommandError("MODEL is missing: a name, the path of a config.json, or module:factory")
    try:
        if args.paper:
            record, show = _paper()
        else:
            record, show = _plans(args)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if args.out is not None:
        try:
            write_json(args.out, record)
        except OSError as error:
            raise CommandError(f"--out: cannot write {args.out}: {error.strerror}") from None
    if args.json:
        print_json(as_json(record))
    else:
        show()
    return 0


#: Columns that hold no numbers.
_WORDS = ("optimizer", "model", "verdict", "fits")


def _plans(args: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], None]]:
    room = None if args.fits is None else _size(args.fits)
    asked = _asked(args)
    model = load(args.model)
    plans = [
        plan(
            model,
            name,
            dtype=args.dtype,
            state_dtype=state_dtype,
            gradient_release=args.gradient_release,
            world_size=args.world_size,
            shard=args.shard,
        )
        for name, state_dtype in asked
    ]
    plans.sort(key=lambda planned: planned.total)
    record = {
        **_facts(args, model),
        "plans": [asdict(p) | {"total": p.total} | _fits(p, room) for p in plans],
    }
    columns = ["optimizer", "parameters", "gradients", "state", "temporaries", "total"]
    rows, styles = [], []
    for p in plans:
        sizes = (p.parameters, p.gradients, p.state, p.temporaries, p.total)
        fits = room is not None and p.total <= room
        cells = [p.label, *map(_human, sizes), *([] if room is None else ["yes" if fits else "no"])]
        rows.append(cells)
        styles.append("bold green" if fits else "")
    columns = columns if room is None else [*columns, "fits"]
    title = _title(args, record)
    return record, partial(print_table, title, columns, rows, words=_WORDS, note=_NOTE, styles=styles)


def _asked(args: argparse.Namespace) -> list[tuple[str, str | None]]:
    """(name, state dtype) of what was asked for. `all` leaves out those that cannot release gradients."""
    everything = args.optimizer == "all"
    asked = list(PLANNED) if everything else [name.strip() for name in args.optimizer.split(",")]
    found = {peer.name: memory for name in asked for peer, memory in select(name)}
    if args.state_dtype is not None:
        choices = {name: memory.state_dtype for name, memory in found.items() if memory.state_dtype}
        if args.state_dtype not in choices.values():
            select(next(iter(choices or found)), args.state_dtype)  # says what is allowed
        found = {
            name: memory for name, memory in found.items() if memory.state_dtype in (None, args.state_dtype)
        }
    if everything and args.gradient_release:
        found = {name: memory for name, memory in found.items() if memory.releases}
    return [(name, memory.state_dtype) for name, memory in found.items()]


def _facts(args: argparse.Namespace, model: nn.Module) -> dict[str, Any]:
    params = parameters(model, DTYPES.get(args.dtype))
    return {
        "model": args.model,
        "elements": sum(param.numel for param in params),
        "trained": sum(param.numel for param in params if param.trains),
        "dtypes": sorted({str(param.dtype).removeprefix("torch.") for param in params}),
        "gradient_release": args.gradient_release,
        "world_size": args.world_size,
        "shard": args.shard,
    }


def _title(args: argparse.Namespace, record: dict[str, Any]) -> str:
    title = f"{args.model}: {record['elements']:,} parameters, {'/'.join(record['dtypes'])}"
    if record["trained"] != record["elements"]:
        title += f", {record['trained']:,} of them trained"
    if record["plans"][0]["buffers"]:
        title += f"; buffers {_human(record['plans'][0]['buffers'])}, in the total"
    if args.gradient_release:
        title += "; gradient release"
    if args.world_size > 1:
        title += f"; the fullest of {args.world_size} ranks, {args.shard}"
    return title


def _fits(planned: Plan, room: int | None) -> dict[str, bool]:
    return {} if room is None else {"fits": planned.total <= room}


def _paper() -> tuple[dict[str, Any], Callable[[], None]]:
    columns = (
        "model",
        "optimizer",
        "paper GiB",
        "planner GiB",
        "deviation",
        "allocated GiB",
        "deviation",
        "verdict",
    )
    rows, cells = [], []
    for row in paper.compare():
        deviations = {
            "deviation": round(row.deviation, 4),
            "deviation_allocated": round(row.deviation_allocated, 4),
        }
        rows.append(asdict(row) | deviations)
        cells.append(
            [
                row.model,
                row.optimizer,
                f"{row.paper:.2f}",
                f"{row.state / paper.GIB:.3f}",
                f"{row.deviation:+.1%}",
                f"{row.allocated / paper.GIB:.3f}",
                f"{row.deviation_allocated:+.1%}",
                row.verdict,
            ]
        )
    title = (
        "Optimizer state in fp32: the paper, the planner, and the planner with the CUDA allocator's rounding"
    )
    note = "agrees: to the paper's two decimals, or within 2 %. allocator: so with the allocator's rounding."
    record = {"source": "arXiv 2412.11768, state in GiB, fp32", "rows": rows}
    return record, partial(print_table, title, columns, cells, words=_WORDS, note=note)


def _human(size: int | None) -> str:
    if size is None:
        return "–"
    for unit in ("GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.2f} {unit}"
    return f"{size} B"


def _size(given: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w+)", given.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(
            f"--fits: given {given!r}; allowed: a number and one of {', '.join(_UNITS)}, as 24GiB"
        )
    return int(float(match[1]) * _UNITS[match[2]])
