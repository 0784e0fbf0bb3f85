"""Write the tables of README and docs from records: `python -m scripts.tables`; `--check` compares."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial

from research.beyond_the_paper import results
from scripts.tables import beyond, late, learning_rates, memory, options, speed, study
from scripts.tables.markdown import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES: dict[str, Callable[[], str]] = {
    "outcome": study.outcome,
    **{f"study-{task}": partial(study.study, task) for task in study.TASKS},
    "speed": speed.speed,
    "gpu": speed.gpu,
    "first-step": speed.first_step,
    "goals": speed.goals,
    "times": speed.times,
    "llama": memory.llama,
    "trained": memory.trained,
    "precisions": memory.precisions,
    "options": options.options,
    "transferred": learning_rates.transferred,
    "from-sgd": learning_rates.from_sgd,
    "late-scales": late.scales,
    "late-proof": late.proof,
    "beyond-search": beyond.search,
    "beyond-rates": beyond.rates,
    "beyond-powers": beyond.powers,
    "beyond-proof": partial(beyond.proof, {task: task for task in results.TASKS}, results.LABELS),
    "beyond-larger": partial(beyond.proof, results.LARGER, results.ALSO_LARGER),
    "beyond-data": partial(beyond.proof, results.OTHER_DATA, results.ALSO_OTHER_DATA),
    "beyond-cliff": partial(beyond.proof, results.CLIFF, [*results.proven("diffusion-judged")]),
    "beyond-apart": beyond.apart,
    "beyond-kinds-gpt": partial(beyond.kinds, "gpt", ranked=True),
    **{f"beyond-kinds-{task}": partial(beyond.kinds, task) for task in results.TASKS if task != "gpt"},
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
            sys.exit(f"{page.name}: its tables are not those of the records; run python -m scripts.tables")
