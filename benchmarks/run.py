"""Runs `sgd-sai bench`, for `make bench`: for each model and number of threads.

A process for each, since the pool of threads does not shrink. A peer that is not installed is a row that says
so; `pip install -c constraints.txt -e '.[peers]'` has them all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).with_name("sgd-sai")
MODELS = {"gpt2": 11, "resnet18": 31, "tiny": 31}  # and how many rounds


def commands(out: Path) -> Iterator[list[str]]:
    """The arguments of `sgd-sai` for each record."""
    for model, rounds in MODELS.items():
        for threads in (1, 2):
            options = f"--device cpu --model {model} --threads {threads} --rounds {rounds}".split()
            yield ["bench", *options, "--out", str(out / f"{model}-cpu-{threads}.json")]


def main() -> None:
    """Run them one after the other; nothing else should run meanwhile."""
    parser = argparse.ArgumentParser(description="Time a step of several optimizers on three models.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/speed"),
        metavar="FOLDER",
        help="of the records; from the root of the repository (default: %(default)s)",
    )
    out: Path = parser.parse_args().out
    (ROOT / out).mkdir(parents=True, exist_ok=True)
    for words in commands(out):
        # The command's own script, so that the record can be made again by what it names.
        subprocess.run([COMMAND, *words], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
