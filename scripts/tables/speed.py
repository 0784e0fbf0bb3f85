"""The time of a step on CPU and GPU: README and docs/speed.md."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from scripts.tables.markdown import RESULTS, read, table


def speeds() -> dict[str, dict[str, Any]]:
    """The records of `make bench` by their files' names."""
    return {
        file.stem: json.loads(file.read_text("utf-8")) for file in sorted((RESULTS / "speed").glob("*.json"))
    }


def threads(record: dict[str, Any]) -> str:
    """On how many threads it ran."""
    return f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"


def speed() -> str:
    """A step on GPT-2 small next to the floor, to other optimizers, and where the goal is missed."""
    [narrow] = [
        row for row in read("gpu/step")["rows"]
        if (row.get("model"), row["name"]) == ("Llama-2-7B", "SGD-SaI 8-bit m stochastic")
    ]  # fmt: skip
    large, tiny = speeds()["gpt2-cpu-2"], speeds()["tiny-cpu-1"]
    gpu = read("gpu/step")
    floor = {name: f"{row['times_floor']:.2f}" for name, row in large["rows"].items()}
    where = f"CPU, {threads(large)}, {large['machine']['processor']}, {large['date'][:10]}"
    said = (
        f"A step on GPT-2 small takes {floor['sgd-sai']} × as long as additions of as many bytes, torch's "
        f"fused AdamW {floor['adamw-fused']} ×, release 1.0.3 {floor['release']} × ({where}, `make bench`). "
        f"A thousand tiny tensors take {tiny['rows']['sgd-sai']['times_sgd_fused']:.1f} × torch's fused SGD. "
        f"On an {gpu['machine']['gpu'].removeprefix('NVIDIA ')} ({gpu['date'][:10]}, `make gpu`), a step on "
        f"Llama-2-7B in bfloat16 with momentum in 8 bits takes {narrow['copy_times']:.2f} × as long as a "
        f"copy of as many bytes, and torch's fused AdamW {narrow['adamw_times']:.1f} × as long as that step."
    )
    return textwrap.fill(said, 118)


#: The models of the record of `make gpu`, from the smallest.
MODELS = ("GPT-2 small", "GPT-2 XL", "Llama-2-7B")


def gpu_rows(record: dict[str, Any]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """The measured rows by dtype and optimizer, and then by model, in the order of the record."""
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in record["rows"]:
        if "device_ms" in row:
            rows.setdefault((row["dtype"], row["name"]), {})[row["model"]] = row
    return rows


def gpu() -> str:
    """The time of a step on a GPU, for parameters of each dtype."""
    record = read("gpu/step")
    rows = [["parameters", "one step", *MODELS, "AdamW ÷ this", "host, ms"]]
    found = gpu_rows(record)
    for dtype, name in sorted(found, key=lambda key: (key[0], "SGD-SaI" not in key[1], key[1])):
        of_models = found[dtype, name]
        cells = [
            f"{of['device_ms']:.2f} ({of['copy_times']:.2f})" if (of := of_models.get(model)) else "–"
            for model in MODELS
        ]
        largest = of_models[max(of_models, key=MODELS.index)]
        small = of_models.get("GPT-2 small", largest)
        rows.append([dtype, name, *cells, f"{largest['adamw_times']:.2f}", f"{small['host_ms']:.1f}"])
    absent = [
        f"{row['name']}: {row['absent'].split(chr(10))[0]}" for row in record["rows"] if "model" not in row
    ]
    missing = f"{'; '.join(absent)}. " if absent else ""
    if not record["complete"]:
        missing += f"The stage was {record['ended']}: a dash was not measured. "
    rates = [row["copy_gb_per_s"] for row in record["rows"] if "copy_gb_per_s" in row]
    return (
        f"{table(*rows)}\n\nMilliseconds of the device, and in brackets how many times as long as copying as "
        f"many bytes. The copies moved {min(rates):,.0f} – {max(rates):,.0f} GB/s. AdamW is torch's fused "
        f"one, on the largest model of the row. {missing}{measured_on(record)}"
    )


def measured_on(record: dict[str, Any]) -> str:
    """The machine of a record of `make gpu`, its versions, date and command."""
    versions = record["versions"]
    return (
        f"{record['machine']['gpu']}, torch {versions['torch']}, Triton {versions['triton']}, "
        f"{record['date'][:10]}: `{record['command']}`"
    )


def first_step() -> str:
    """The one-off measurement of g-SNR on a GPU, next to the paper's."""
    record = read("gpu/first_step")
    rows = [["model", "gradients", "kernels", "reading once", "with the host", "the paper, A100"]]
    for row in record["rows"]:
        times = [row["kernels_ms"], row["read_ms"], row["measure_ms"]]
        cells = [f"{time:.2f}" for time in times]
        rows.append([row["model"], row["dtype"], *cells, f"{row['paper_a100_ms']:.1f}"])
    return f"{table(*rows)}\n\nMilliseconds; medians. {measured_on(record)}"


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
