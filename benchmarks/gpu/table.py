"""Figures as lines of text: short, since the reader may see the end of the output alone."""

from __future__ import annotations

from typing import Any

_GIB = 2**30
_MOST_FAILURES = 20  # that the last table names; the record has them all
HEADS = {
    "tests": "tests that failed, or were slow",
    "step": "device ms, × copy of as many bytes, AdamW fused ÷ this, host ms",
    "first_step": "ms of measuring (first call), of the step (first call), × reading, "
    "kernels (reading), paper's ms on A100",
    "llama": "Llama-2-7B, all parameters: peak, goal, plan; tokens a second, ms and host ms a step; losses",
}


def line(stage: str, row: dict[str, Any]) -> str:
    """A row of a record."""
    if "error" in row or "absent" in row:
        where = " ".join(str(row[key]) for key in ("model", "dtype", "name") if key in row)
        return f"{where}: {'FAILED: ' if 'error' in row else ''}{row.get('error') or row['absent']}"[:220]
    shown: str = {"tests": _test, "step": _step, "first_step": _first_step, "llama": _llama}[stage](row)
    return shown


def lines(stage: str, record: dict[str, Any]) -> list[str]:
    """A whole record."""
    state = "" if record["complete"] else f", NOT COMPLETE: {record.get('error', 'cut off')}"
    counts = record.get("counts")
    said = ", " + ", ".join(f"{n} {of}" for of, n in counts.items()) if counts else ""
    shown = [line(stage, row) for row in record["rows"]]
    if stage == "tests":
        shown = sorted(shown, key=lambda text: "FAILED" not in text)
        more = len(shown) - _MOST_FAILURES
        shown = shown[:_MOST_FAILURES] + [f"and {more} more, in the record"] * (more > 0)
    return [
        f"{stage} ({record['seconds']:.0f} s{said}{state}) {HEADS[stage]}",
        *(f" {text}" for text in shown),
    ]


def _test(row: dict[str, Any]) -> str:
    return f"{row['name']}: {row['seconds']} s"


def _step(row: dict[str, Any]) -> str:
    adamw = f"{row['adamw_times']:6.2f}" if "adamw_times" in row else "     –"
    dtype = {"bfloat16": "bf16", "float32": "fp32"}[row["dtype"]]
    return (
        f"{row['model']:<11} {dtype} {row['name']:<26}{row['device_ms']:9.3f}{row['copy_times']:7.2f}"
        f"{adamw}{row['host_ms']:8.2f}"
    )


def _first_step(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:<8} {row['dtype']:<8} {row['measure_ms']:9.2f} ({row['measure_first_call_ms']:.1f}) "
        f"{row['step_ms']:9.2f} ({row['step_first_call_ms']:.1f}) {row['read_times']:7.1f} "
        f"{row['kernels_ms'] or 0:7.3f} ({row['read_ms']:.3f}) {row['paper_a100_ms']:7.1f}"
    )


def _llama(row: dict[str, Any]) -> str:
    peak, goal, plan = (row[f"{name}_bytes"] / _GIB for name in ("peak", "goal", "planned"))
    said = "met" if peak < goal else "MISSED"
    losses = row["losses"]
    return (
        f"{row['variant']}: {peak:.2f} GiB, goal {goal:.2f} {said}, plan {plan:.2f}; "
        f"{row['tokens_per_second']:.0f} tokens/s, {row['step_ms']:.0f} ms, host {row['host_ms']:.0f} ms, "
        f"{row['host_us_a_parameter']:.0f} µs a parameter; "
        f"loss {losses[0]:.2f} → {losses[-1]:.3f}"
    )
