"""Tables in Markdown, and the records of `benchmarks/results` that they show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> Any:
    """Return a record of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def table(*rows: list[str]) -> str:
    """Return a Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
