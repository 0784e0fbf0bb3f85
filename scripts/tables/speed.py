"""The time of a step on CPU and GPU: README and docs/speed.md."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from scripts.tables.markdown import RESULTS, read, table


def speeds() -> dict[str, dict[str, Any]]:
    """The records of `make bench` by their files' names."""
    return {file.stem: json.loads(file.read_text()) for file in sorted((RESULTS / "speed").glob("*.json"))}


def threads(record: dict[str, Any]) -> str:
    """On how many threads it ran."""
    return f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"


def speed() -> str:
    """A step on GPT-2 small next to the floor, to other optimizers, and where the goal is missed."""
    large, tiny = speeds()["gpt2-cpu-2"], speeds()["tiny-cpu-1"]
    gpu = read("gpu_step")
    single = gpu["dtypes"][0]["results"]
    ours, adamw = (single[name]["device_ms"]["median"] for name in ("SGDSaI", "torch AdamW, fused"))
    floor = {name: f"{row['times_floor']:.2f}" for name, row in large["rows"].items()}
    where = f"CPU, {threads(large)}, {large['machine']['processor']}, {large['date'][:10]}"
    said = (
        f"A step on GPT-2 small takes {floor['sgd-sai']} × as long as additions of as many bytes, torch's "
        f"fused AdamW {floor['adamw-fused']} ×, release 1.0.3 {floor['release']} × ({where}, `make bench`). "
        f"A thousand tiny tensors take {tiny['rows']['sgd-sai']['times_sgd_fused']:.1f} × torch's fused SGD. "
        f"On an {gpu['machine']['gpu'].removeprefix('NVIDIA ')}, a step takes "
        f"{times_copy(single['SGDSaI'])} × as long as a copy of as many bytes, and torch's fused "
        f"AdamW {adamw / ours:.2f} × as long as SGD-SaI ({gpu['date'][:10]}, "
        f"`{gpu['command'].split(' --')[0]}`)."
    )
    return textwrap.fill(said, 118)


def times_copy(row: dict[str, Any]) -> str:
    """A step on a GPU, relative to a copy that reads and writes as many bytes."""
    return f"{row['device_ms']['median'] / row['copy_ms']:.2f}"


def gpu() -> str:
    """The time of a step on a GPU, for parameters of each dtype."""
    record = read("gpu_step")
    rows = [["parameters and gradients", "one step", "ms", "range", "× copy", "host, ms"]]
    for of_dtype in record["dtypes"]:
        for name, row in of_dtype["results"].items():
            device = row["device_ms"]
            span = f"{device['min']:.3f} – {device['max']:.3f}"
            shown = [f"{device['median']:.3f}", span, times_copy(row), f"{row['host_ms']['median']:.2f}"]
            if name != "copy":
                rows.append([of_dtype["dtype"], name, *shown])
    rates = " and ".join(f"{of['copy_gb_per_s']:,.0f}" for of in record["dtypes"])
    return (
        f"{table(*rows)}\n\n{record['model']}, {record['elements']:,} parameters; medians of "
        f"{record['rounds']} rounds. The copies moved {rates} GB/s. {record['machine']['gpu']}, "
        f"torch {record['versions']['torch']}, Triton {record['versions']['triton']}, "
        f"{record['date'][:10]}: `{record['command']}`"
    )


def goals() -> str:
    """Return the goals of a step with decay on the CPU, and the results of `make bench`."""
    rows = [
        [
            "",
            "SGD-SaI ÷ torch SGD (fused)",
            "release 1.0.3 ÷ SGD-SaI",
            "AdamW (fused) ÷ SGD-SaI",
            "SGD-SaI ÷ floor",
        ]
    ]
    rows.append(["**goal**", "≤ 1.05", "≥ 2", "> 1", "as near 1 as can be"])
    for record in speeds().values():
        of = {name: row["times_sgd_fused"] for name, row in record["rows"].items()}
        ours = of["sgd-sai"]
        of_floor = record["rows"]["sgd-sai"]["times_floor"]
        ratios = (ours, of["release"] / ours, of["adamw-fused"] / ours, of_floor)
        rows.append([f"{record['model']}, {threads(record)}", *(f"{ratio:.2f}" for ratio in ratios)])
    return table(*rows)


def times() -> str:
    """Every record of `make bench`, contender by contender."""
    parts = []
    for record in speeds().values():
        rows = [["one step", "ms", "quartiles", "× floor", "× SGD (fused)"]]
        for row in sorted(record["rows"].values(), key=lambda row: row["ms"]):
            low, high = row["ms_quartiles"]
            ratios = [f"{row['times_floor']:.2f}", f"{row['times_sgd_fused']:.2f}"]
            rows.append([row["label"], f"{row['ms']:.2f}", f"{low:.2f} – {high:.2f}", *ratios])
        rows += [[absent["label"], absent["why"], "", "", ""] for absent in record["absent"].values()]
        title = f"{record['model']}: {record['parameters']:,} parameters, {record['tensors']} tensors"
        parts.append(
            f"### {title}, {record['dtype']}, {threads(record)}\n\n{table(*rows)}\n\n"
            f"Floor {record['floor_ms']:.2f} ms. {record['rounds']} rounds, "
            f"{record['machine']['processor']}, torch {record['versions']['torch']}, "
            f"{record['date'][:10]}: `{record['command']}`"
        )
    return "\n\n".join(parts) or "Not measured yet; `make bench` does."
