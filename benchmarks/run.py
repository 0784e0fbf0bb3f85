"""What `make bench` runs: `sgd-sai bench` for each model and number of threads, into results/speed/.

A process for each, since the pool of threads does not shrink. A peer that is not installed is a row that says
so; `pip install -c constraints.txt -e '.[peers]'` has them all.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "speed"
MODELS = {"gpt2": 11, "resnet18": 31, "tiny": 31}  # and how many rounds


def main() -> None:
    """Run them one after the other; nothing else should run meanwhile."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for model, rounds in MODELS.items():
        for threads in (1, 2):
            out = RESULTS / f"{model}-cpu-{threads}.json"
            options = [
                "--model",
                model,
                "--threads",
                str(threads),
                "--rounds",
                str(rounds),
                "--out",
                str(out),
            ]
            subprocess.run(
                [sys.executable, "-m", "sgd_sai.cli", "bench", "--device", "cpu", *options], check=True
            )


if __name__ == "__main__":
    main()
