"""Runs `sgd-sai bench`, for `make bench`: for each model and number of threads, into results/speed/.

A process for each, since the pool of threads does not shrink. A peer that is not installed is a row that says
so; `pip install -c constraints.txt -e '.[peers]'` has them all.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = Path("benchmarks", "results", "speed")
COMMAND = Path(sys.executable).with_name("sgd-sai")
MODELS = {"gpt2": 11, "resnet18": 31, "tiny": 31}  # and how many rounds


def main() -> None:
    """Run them one after the other; nothing else should run meanwhile."""
    (ROOT / RESULTS).mkdir(parents=True, exist_ok=True)
    for model, rounds in MODELS.items():
        for threads in (1, 2):
            options = f"--device cpu --model {model} --threads {threads} --rounds {rounds}".split()
            out = RESULTS / f"{model}-cpu-{threads}.json"
            # The command's own script, so that the record can be made again by what it names.
            subprocess.run([COMMAND, "bench", *options, "--out", str(out)], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
