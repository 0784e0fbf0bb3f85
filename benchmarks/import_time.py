"""The milliseconds that `import sgd_sai` adds to `import torch`: medians of fresh interpreters, interleaved.

python benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 15
CODE = "import time; import torch; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def main() -> None:
    """Print the quartiles."""
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", CODE.format("sgd_sai")])) for _ in range(ROUNDS)
    ]
    low, median, high = statistics.quantiles(seconds, n=4)
    print(
        f"import sgd_sai, after import torch: {1e3 * median:.1f} ms "
        f"(quartiles {1e3 * low:.1f}, {1e3 * high:.1f}; {ROUNDS} interpreters)"
    )


if __name__ == "__main__":
    main()
