"""Writes tables of README and docs from records: `python docs/tables.py`; `--check` compares."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from scipy.stats import spearmanr

import beyond
from sgd_sai.lab import tuned
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.records import read_runs
from sgd_sai.lab.summary import by_task, cells

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDY = ROOT / "docs" / "records" / "study"
RESULTS = ROOT / "benchmarks" / "results"
SPEED = RESULTS / "speed"


def read(name: str) -> Any:
    """A record of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def table(*rows: list[str]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def outcome() -> str:
    """What the study found, a row a task."""
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


def speeds() -> dict[str, dict[str, Any]]:
    """The records of `make bench` by their files' names."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(SPEED.glob("*.json"))}


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


def llama() -> str:
    """What was held at most while all parameters of Llama-2-7B were trained on a GPU, next to the plan."""
    rows = [["optimizer", "peak", "bytes a parameter", "plan, without activations"]]
    rows[0] += ["loss, first → last", "s a step"]
    records = [read(f"memory/llama-2-7b-h100{which}") for which in ("-no-momentum", "", "-adamw")]
    for record in records:
        peak, planned = (f"{record[key] / 2**30:.2f} GiB" for key in ("peak_bytes", "planned_bytes"))
        fell = f"{record['losses'][0]:.3g} → {record['losses'][-1]:.2g}"
        numbers = [f"{record['peak_bytes_a_parameter']:.2f}", planned, fell]
        rows.append([record["optimizer"], peak, *numbers, f"{median(record['seconds']):.2f}"])
    return (
        f"{table(*rows)}\n\n{record['parameters']:,} parameters in bf16 from random weights, context "
        f"{record['context']}, batch 1, activation checkpointing; {record['machine']['gpu']}, torch "
        f"{record['versions']['torch']}, {record['date'][:10]}."
    )


def trained() -> str:
    """The peaks of `llama`, in a sentence."""
    without, with_8_bits = (read(f"memory/llama-2-7b-h100{which}") for which in ("-no-momentum", ""))
    peaks = [f"{record['peak_bytes'] / 2**30:.1f} GiB" for record in (without, with_8_bits)]
    said = (
        "All parameters of Llama-2-7B, in bf16 with `gradient_release` and a context of "
        f"{without['context']}, train in {peaks[0]} of GPU memory without momentum and in {peaks[1]} "
        "with momentum in 8 bits "
        f"({without['machine']['gpu'].removeprefix('NVIDIA ')}, {without['date'][:10]})."
    )
    return textwrap.fill(said, 118)


def goals() -> str:
    """What a step with decay was to reach on the CPU, and what `make bench` found."""
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


def precisions() -> str:
    """What `benchmarks/low_precision.py` recorded."""
    record = read("low-precision")
    losses = record["val_loss"]
    seeds = [seed for seed in losses["float32"] if all(seed in of_name for of_name in losses.values())]
    rows = [["parameters, rounding, momentum", *(f"seed {seed}" for seed in seeds), "mean − float32"]]
    for name, of_seed in losses.items():
        difference = sum(of_seed[seed] - losses["float32"][seed] for seed in seeds) / len(seeds)
        rows.append([name, *(f"{of_seed[seed]:.4f}" for seed in seeds), f"{difference:+.4f}"])
    return (
        f"{table(*rows)}\n\nValidation loss in nats per byte after {record['steps']} steps; "
        f"{record['machine']['processor']}, torch {record['torch']}, {record['date'][:10]}: "
        f"`{record['command']}`"
    )


def from_sgd() -> str:
    """The tuned rates of SGD-SaI over those of SGD with momentum."""
    entries = tuned.read(tuned.OWN)
    return table([*entries], [f"{row['sgd-sai']['lr'] / row['sgd']['lr']:.3g}" for row in entries.values()])


def transferred() -> str:
    """What `sgd-sai lr-find TASKS --tuned --json` recorded."""
    rows = [
        [
            *("task", "AdamW, tuned", "transferred", "SGD-SaI, tuned", "tuned / transferred"),
            *("result at tuned", "at the point nearest to transferred", "metric"),
        ]
    ]
    for task in read("lr-transfer")["tasks"]:
        numbers = ("adamw", "transferred", "sgd_sai", "ratio", "tuned_metric", "nearest_metric")
        shown = [f"{task[key]:.3g}" for key in numbers]
        rows.append([task["task"], *shown, task["metric"].replace("val_", "")])
    return table(*rows)


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


def beyond_search() -> str:
    """The best held-out loss of each search of `benchmarks/beyond`, and its trials."""
    return _by_task(lambda trial: f"{trial['val_loss']:.4f} · {trial['trials']}")


def beyond_rates() -> str:
    """The learning rate that each search ended with, and how far apart those of the tasks are."""
    found = [beyond.searched(task) for task in beyond.TASKS]

    def apart(method: str) -> str:
        rates = [of[method]["point"]["lr"] for of in found if method in of]
        return f"{max(rates) / min(rates):.1f} ×" if len(rates) == len(found) else cells.MISSING

    return _by_task(lambda trial: f"{trial['point']['lr']:.2g}", **{"most ÷ least": apart})


def beyond_powers() -> str:
    """The exponents that the searches found, task by task."""
    rows = [["task", "p", "s", "factor of vectors", "momentum", "η"]]
    for task in beyond.TASKS:
        point = beyond.searched(task)["powers"]["point"]
        names = ("power of rms(g)", "power of d", "c of vectors")
        rows.append([task, *(f"{point[name]:.2f}" for name in names), f"{1 - point['1 - mu']:.2f}"])
        rows[-1].append(f"{point['lr']:.2g}")
    return table(*rows)


def _by_task(shown: Callable[[dict[str, Any]], str], **more: Callable[[str], str]) -> str:
    """A row a method, a column a task with what is shown of its best trial, then `more` columns."""
    found = {task: beyond.searched(task) for task in beyond.TASKS}
    rows = [["scales", *found, *more]]
    for method, label in beyond.LABELS.items():
        trials = [of.get(method) for of in found.values()]
        if any(trials):
            row = [shown(trial) if trial else cells.MISSING for trial in trials]
            rows.append([label, *row, *(column(method) for column in more.values())])
    return table(*rows)


def beyond_proof(titles: dict[str, str], methods: Collection[str]) -> str:
    """By how much each method is behind AdamW on seeds that no search has seen; of AdamW what it reached."""
    found = {name: of for name in titles if (of := beyond.proven(name))}
    rows = [["scales", *(f"{titles[name]}, {len(of['adamw'])} seeds" for name, of in found.items())]]
    for method in (method for method in methods if any(method in of for of in found.values())):
        rows.append([beyond.LABELS[method], *(_behind(name, method) for name in found)])
    return table(*rows)


def _behind(name: str, method: str) -> str:
    runs = beyond.proven(name)
    if method not in runs:
        return cells.MISSING
    if method == "adamw":
        result = mean(runs[method].values())
        return f"{result:.1%}" if beyond.by_accuracy(name) else f"{result:.4f} nats"
    behind, interval = beyond.behind(name, method)
    ends = f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})" if interval else ""
    return f"{100 * behind:+.1f}{ends}".replace("-", "−")


def beyond_apart() -> str:
    """What is lost on gpt by one number a block, and what by numbers that do not change."""
    return table(
        ["", "one number a block", "one number an element"],
        ["fixed, of AdamW's own run", _behind("gpt", "hindsight"), _behind("gpt", "elements")],
        ["fixed, of the first gradient", _behind("gpt", "settled"), cells.MISSING],
        ["followed over time", _behind("gpt", "adaptive"), "AdamW itself"],
    )


def beyond_kinds(task: str, ranked: bool = False) -> str:
    """What was measured of each kind of block of a task, and the constants that the search found."""
    found = beyond.kinds(task)
    measured = {"mean of d": "d", "rms(g)": "rms(g)", "rms(w)": "rms(w)", "curvature": "curvature"}
    later = {"along": "rms(g), AdamW's run", "spread": "spread of √v within"}
    rows = [["kind", "c, searched", *measured.values(), *later.values()]]
    for row in found:
        sizes = " to ".join(dict.fromkeys(f"{d:,}" for d in row["d"]))
        numbers = [f"{row[name]:.1e}" if row[name] else "0" for name in ("rms(g)", "rms(w)")]
        later_shown = [f"{row['along']:.1e}", f"× {row['spread']:.1f}"]
        curvature = f"{row['curvature']:.2g}".replace("-", "−")
        rows.append([row["kind"], f"{row['c']:.2g}", sizes, *numbers, curvature, *later_shown])
    if ranked:
        pairs = [([row[name] for row in found], [row["c"] for row in found]) for name in (*measured, *later)]
        ranks = [f"{spearmanr(*pair)[0]:+.2f}".replace("-", "−") for pair in pairs]
        rows.append(["*rank correlation with c*", "", *ranks])
    return table(*rows)


TABLES: dict[str, Callable[[], str]] = {
    "outcome": outcome,
    "speed": speed,
    "gpu": gpu,
    "llama": llama,
    "trained": trained,
    "goals": goals,
    "times": times,
    "precisions": precisions,
    "transferred": transferred,
    "from-sgd": from_sgd,
    "beyond-search": beyond_search,
    "beyond-rates": beyond_rates,
    "beyond-powers": beyond_powers,
    "beyond-proof": partial(beyond_proof, {task: task for task in beyond.TASKS}, beyond.LABELS),
    "beyond-larger": partial(beyond_proof, beyond.LARGER, beyond.ALSO_LARGER),
    "beyond-data": partial(beyond_proof, beyond.OTHER_DATA, beyond.ALSO_OTHER_DATA),
    "beyond-cliff": partial(beyond_proof, beyond.CLIFF, [*beyond.proven("diffusion-judged")]),
    "beyond-apart": beyond_apart,
    "beyond-kinds-gpt": partial(beyond_kinds, "gpt", ranked=True),
    **{f"beyond-kinds-{task}": partial(beyond_kinds, task) for task in beyond.TASKS if task != "gpt"},
    **{f"study-{task}": partial(study, task) for task in ("cnn", "vit", "gpt", "lora", "diffusion")},
}


def written(text: str) -> str:
    """`text` with what stands between the markers of each table made anew."""
    for name, make in TABLES.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if between.search(text):
            content = make()
            text = between.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    for page in PAGES:
        old = page.read_text("utf-8")
        new = written(old)
        if "--check" not in sys.argv:
            page.write_text(new, "utf-8")
        elif old != new:
            sys.exit(f"{page.name}: its tables are not those of the records; run python docs/tables.py")
