"""The page of `sgd-sai gsnr`, from its record alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from sgd_sai import html
from sgd_sai.html import Axis, Chart, Colours, Row, Section, element
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.tools import output
from sgd_sai.tools.gsnr.record import COLUMNS, WORDS, cells

#: Kinds of parameters, by their shape and name.
KINDS: dict[str, Colours] = {
    "matrix": ("#1d4ed8", "#7aa2f7"),
    "convolution": ("#0f766e", "#4fd1c5"),
    "bias": ("#c2410c", "#fb923c"),
    "other vector": ("#a21caf", "#e879f9"),
    "scalar": ("#636c76", "#9aa3ad"),
}

#: Of the gains, by how many charts there are.
_LAYOUTS: dict[int, Literal["single", "pairs"]] = {1: "single", 4: "pairs"}
_DEPTH = 1e-5  # of the largest update: what is smaller is noise, and would leave no room for the rest


def build(record: dict[str, Any]) -> str:
    """Return the page about a record."""
    sections = [_first(record)]
    if "training" in record:
        sections += [_over_time(record), _gains(record)]
    sections.append(_blocks(record))
    return html.build(
        f"g-SNR of {record['workload']}", record["sentences"], sections, output.provenance_lines(record)
    )


def kind(row: dict[str, Any]) -> str:
    """Return the sort of parameter that a block is, a name of `KINDS`."""
    dimensions = len(row["shape"])
    if dimensions <= 1:
        name = row["name"].rpartition(".")[2]
        return "scalar" if dimensions == 0 else "bias" if "bias" in name else "other vector"
    return "matrix" if dimensions == 2 else "convolution"


def _kinds(record: dict[str, Any]) -> dict[str, Colours]:
    present = {kind(row) for row in record["blocks"]}
    return {name: colours for name, colours in KINDS.items() if name in present}


def _first(record: dict[str, Any]) -> Section:
    latched = [row for row in record["blocks"] if row["gsnr"] is not None]
    diagonal = [min(row["sqrt_d"] for row in latched), max(row["sqrt_d"] for row in latched)]
    dots = [{"x": diagonal, "y": diagonal, "dash": "dot", "silent": True}]
    dots += [
        {
            "x": [row["sqrt_d"] for row in latched if kind(row) == name],
            "y": [row["gsnr"] for row in latched if kind(row) == name],
            "text": [row["name"] for row in latched if kind(row) == name],
            "mode": "markers",
            "colours": colours,
            "opacity": 0.75,
        }
        for name, colours in _kinds(record).items()
    ]
    places = list(range(1, len(latched) + 1))
    updates: list[dict[str, Any]] = [
        {
            "x": places,
            "y": [row[key] or None for row in latched],
            "text": [f"{row['name']}, {label}" for row in latched],
            "mode": "markers",
            "colours": OPTIMIZERS[optimizer].colour,
            "symbol": symbol,
            "opacity": 0.8,
        }
        for optimizer, key, symbol, label in (
            ("adamw", "adamw_update", "line-ew-open", "AdamW"),
            ("sgd-sai", "sgd_sai_update", "circle", "SGD-SaI"),
        )
    ]
    sizes = [size for line in updates for size in line["y"] if size]
    highest = max(sizes)
    lowest = max(min(sizes), _DEPTH * highest)
    hidden = sum(size < lowest for size in sizes)
    note = "orange: SGD-SaI; blue: AdamW" + (f"; {hidden} below the picture" if hidden else "")
    return Section(
        "The first gradient",
        "G_snr = √d · √(1 + ḡ²/σ²): a block lies on the dotted line where its mean gradient is small against "
        "its deviation. The updates are taken at the learning rates at which both are equally large over all "
        "blocks together.",
        [
            Row(
                [
                    Chart(
                        "gsnr",
                        "G_snr against √d",
                        Axis("√d", log=True),
                        Axis(log=True),
                        dots,
                        "one dot a block",
                    ),
                    Chart(
                        "updates",
                        "RMS of the first update",
                        Axis("block, in the order of the model"),
                        Axis(log=True, range=[math.log10(lowest) - 0.2, math.log10(highest) + 0.2]),
                        updates,
                        note,
                    ),
                ]
            )
        ],
        legend=_kinds(record),
    )


def _over_time(record: dict[str, Any]) -> Section:
    trace = record["training"]["SGD-SaI"]
    chart = Chart(
        "stability",
        "G_snr",
        Axis("steps"),
        Axis(log=True),
        list(_lines(record, trace["steps"], trace["gsnr"])),
        "one line a block",
    )
    return Section(
        "G_snr over time",
        "SGD-SaI keeps the value of the first step. Here it is measured on, while SGD-SaI trains.",
        [Row([chart], "single")],
        legend=_kinds(record),
    )


def _gains(record: dict[str, Any]) -> Section:
    traces = {name: trace for name, trace in record["training"].items() if trace["steps"]}
    values = [
        value
        for trace in traces.values()
        for series in trace["gains"].values()
        for value in series
        if value is not None and value > 0.0
    ]
    span = [math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1] if values else None
    charts = [
        Chart(
            f"gain-{place}",
            name,
            Axis("steps"),
            Axis(log=True, range=span),
            list(_lines(record, trace["steps"], trace["gains"])),
            f"lr {trace['lr']:.3g}",
        )
        for place, (name, trace) in enumerate(traces.items())
    ]
    return Section(
        "Local gain over time",
        "RMS of the update over RMS of the gradient, block by block, while each optimizer trains from the "
        "same weights on the same batches, at the lr at which all first updates are equally large (SGD-SaI: "
        "normalize='rms'). SGD has one rate for all blocks, SGD-SaI one for each, fixed; "
        "Adam's and Adam-mini's follow the gradient. What moves within SGD and SGD-SaI is the momentum.",
        [Row(charts, _LAYOUTS.get(len(charts), ""))],
        legend=_kinds(record),
    )


def _lines(
    record: dict[str, Any], steps: list[int], series: dict[str, list[float | None]]
) -> Iterable[dict[str, Any]]:
    for row in record["blocks"]:
        yield {
            "x": steps,
            "mode": "lines" if len(steps) > 1 else "markers",
            "y": [value or None for value in series[row["name"]]],  # a log axis has no zero
            "name": row["name"],
            "colours": KINDS[kind(row)],
            "opacity": 0.7,
        }


def _blocks(record: dict[str, Any]) -> Section:
    columns = list(COLUMNS)
    columns[9:11] = ["SGD-SaI update", "AdamW update"]
    rows = [cells(row) for row in record["blocks"]]
    table = html.table(columns, rows, kind="listing", words=WORDS)
    lr = record["lr"]["normalize=True"]
    return Section(
        "Every block",
        "d elements, gradient norm ‖g‖ and deviation σ, scale = G_snr over the largest; RMS of the first "
        f"update of SGD-SaI at lr {lr:.3g} and of AdamW at lr {record['adamw_lr']:.3g}.",
        [element("details", element("summary", f"{len(rows)} rows"), table, open=True)],
    )
