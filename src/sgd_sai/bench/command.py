"""`sgd-sai bench`: the command line, the table, the record."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

import torch

from sgd_sai.bench import timing
from sgd_sai.bench.timing import Series
from sgd_sai.cli import CommandError
from sgd_sai.cli.console import print_json, print_table, progress
from sgd_sai.files import as_json, write_json
from sgd_sai.lab.provenance import command, machine, now
from sgd_sai.memory.models import MODELS, load
from sgd_sai.memory.planner import DTYPES
from sgd_sai.peers import PEERS, check_installed

#: Those that can be timed: name → builder.
TIMED = {name: peer.plain for name, peer in PEERS.items() if peer.plain is not None}
# Parameters shall stay about what they are over many steps; but if 1 − λη were 1 in float32, decay would cost
# nothing.
LR = 1e-5
WARM_UP = 3  # rounds: state, scales, compiling
_PACKAGES = (
    "torch",
    "adam-mini",
    "bitsandbytes",
    "prodigyopt",
    "pytorch-optimizer",
    "torch-optimi",
    "torchao",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sgd-sai bench`."""
    default = [name for name in TIMED if PEERS[name].by_default]
    parser.add_argument(
        "--model",
        default="gpt2",
        help=f"tiny (1000 small tensors), {', '.join(MODELS)}, a config.json, module:factory",
    )
    parser.add_argument(
        "--optimizer", default=",".join(default), help=f"of {', '.join(TIMED)}; default: %(default)s"
    )
    parser.add_argument("--dtype", default="fp32", help=f"of parameters and gradients: {', '.join(DTYPES)}")
    parser.add_argument(
        "--rounds", type=int, default=21, help="timed rounds after 3 to warm up (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print the record instead of a table")
    parser.add_argument("--out", type=Path, help="write the record to this file, too")


def run(args: argparse.Namespace) -> int:
    """Time, print, write."""
    names = args.optimizer.split(",")
    unknown = [name for name in names if name not in TIMED]
    if unknown:
        raise CommandError(f"--optimizer: unknown {unknown[0]!r}; there are {', '.join(TIMED)}")
    if args.dtype not in DTYPES:
        raise CommandError(f"--dtype: given {args.dtype!r}; allowed: {', '.join(DTYPES)}")
    for name in ("rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise CommandError(f"--{name}: given {value}; allowed: 1 or more")
    if args.out is not None and not args.out.parent.is_dir():
        raise CommandError(f"--out: {args.out.parent} is no folder")
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device: {args.device}: {str(error).splitlines()[0]}") from None
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        shapes_of(args.model)
    except ValueError as error:
        raise CommandError(f"--{error}") from None
    record = bench(args.model, names, DTYPES[args.dtype], args.rounds, device)
    if args.out is not None:
        write_json(args.out, record)
    if args.json:
        print_json(as_json(record))
    else:
        _show(record)
    return 0


def shapes_of(model: str) -> list[torch.Size]:
    """The shapes of a model's parameters, tied ones once; nothing is allocated."""
    if model == "tiny":
        return [torch.Size(shape) for shape in [(64,), (64, 16), (16,), (32, 32)] * 250]
    return [param.shape for param in load(model).parameters()]


def bench(
    model: str, names: list[str], dtype: torch.dtype, rounds: int, device: torch.device
) -> dict[str, Any]:
    """The record: what ran where, and for each contender its milliseconds and ratios, or why it is absent."""
    params = timing.parameters(shapes_of(model), dtype, device)
    floor = Series("floor", timing.floor(params))
    series, absent = [floor], {}
    for name in names:
        try:
            check_installed([name])
        except ValueError as error:
            absent[name] = str(error)
            continue
        try:
            one = Series(name, TIMED[name](params, lr=LR).step)
            one.step()
            series.append(one)
        except Exception as error:  # a peer that breaks here is a row that says so
            if name.startswith("sgd-sai"):
                raise
            absent[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:90]}"
    _rounds(series, WARM_UP, device, "warming up")
    for one in series:
        one.ms.clear()
    _rounds(series, rounds, device, "timing")
    reference = next((one for one in series if one.name == "sgd-fused"), None)
    rows: dict[str, Any] = {}
    for one in series[1:]:
        low, median, high = timing.quartiles(one.ms)
        rows[one.name] = {
            "label": PEERS[one.name].label,
            "ms": round(median, 3),
            "ms_quartiles": [round(low, 3), round(high, 3)],
            "times_floor": round(timing.ratio(one, floor), 3),
            "times_sgd_fused": round(timing.ratio(one, reference), 3) if reference else None,
        }
    return {
        "model": model,
        "parameters": sum(param.numel() for param in params),
        "tensors": len(params),
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "rounds": rounds,
        "floor_ms": round(timing.quartiles(floor.ms)[1], 3),
        "floor": "in-place additions that move as many bytes as read θ, g, m and write θ, m",
        "rows": rows,
        "absent": {name: {"label": PEERS[name].label, "why": why} for name, why in absent.items()},
        "machine": machine(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "date": now(),
        "command": command(),
    }


def _rounds(series: list[Series], rounds: int, device: torch.device, what: str) -> None:
    with progress() as shown:
        task = shown.add_task(what, total=rounds)
        timing.interleave(series, rounds, device, lambda: shown.advance(task))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _show(record: dict[str, Any]) -> None:
    where = record["device"] if record["threads"] is None else f"cpu, {record['threads']} thread(s)"
    columns = ("one step", "ms", "quartiles", "× floor", "× SGD fused")
    rows, styles = [], []
    for row in sorted(record["rows"].values(), key=lambda row: row["ms"]):
        low, high = row["ms_quartiles"]
        of_sgd = row["times_sgd_fused"]
        cells = [row["label"], f"{row['ms']:.1f}", f"{low:.1f} – {high:.1f}", f"{row['times_floor']:.2f}"]
        rows.append([*cells, "–" if of_sgd is None else f"{of_sgd:.2f}"])
        styles.append("bold" if row["label"].startswith("SGD-SaI") else "")
    rounds = f"Medians of {record['rounds']} interleaved rounds."
    floor = f"Floor: {record['floor_ms']:.1f} ms, {record['floor']}."
    absent = [f"{row['label']}: {row['why']}" for row in record["absent"].values()]
    print_table(
        f"{record['model']}: {record['parameters']:,} parameters in {record['tensors']} tensors, "
        f"{record['dtype']}, {where}",
        columns,
        rows,
        words=columns[:1],
        note="\n".join([f"{rounds} {floor}", *absent]),
        styles=styles,
    )
