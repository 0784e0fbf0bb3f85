"""One stage in a process of its own: `python -m benchmarks.gpu.worker STAGE OUT [--dry-run]`.

The record is written after each row, so that what was measured outlives a stage that is cut off.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import device, table
from sgd_sai.files import write_json
from sgd_sai.lab.provenance import machine, now

_PACKAGES = ("triton", "transformers", "torch-optimi", "bitsandbytes", "torchao", "flashoptim")


class Record:
    """The record of a stage, written aside and renamed whenever it has grown."""

    def __init__(self, stage: str, out: Path, *, dry: bool) -> None:
        """Nothing is written before the first row: an older record stays until then."""
        # With --force, since the record that says so is there.
        words = f"python -m benchmarks.gpu --only {stage} --force" + " --dry-run" * dry
        if not out.is_absolute():  # else it is a folder of this machine alone
            words += f" --out {out}"
        self._path = out / f"{stage}.json"
        self._begin = self._written = time.monotonic()
        self.stage = stage
        self.fields: dict[str, Any] = {
            "command": words,
            "date": now(),
            "machine": machine(),
            "versions": versions(),
            "dry_run": dry,
            "complete": False,
        }
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, show it, and write."""
        self.rows.append(row)
        print(f"  {table.line(self.stage, row)}", flush=True)
        self.write()

    def note(self, **fields: Any) -> None:
        """Set fields beside the rows. They may change often: they are written once a second at most."""
        self.fields.update(fields)
        if time.monotonic() - self._written > 1.0:
            self.write()

    def write(self) -> None:
        """Write what there is."""
        self._written = time.monotonic()
        seconds = round(self._written - self._begin, 1)
        write_json(self._path, {**self.fields, "seconds": seconds, "rows": self.rows})


def versions() -> dict[str, str | None]:
    """Of what the figures depend on."""
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": _driver(),
        **{name: installed[name] for name in _PACKAGES if name in installed},
    }


def _driver() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    if file.exists() and (found := re.search(r"\d+\.\d+(\.\d+)?", file.read_text("utf-8"))):
        return found.group()
    try:
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        ran = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() or None


def main(stage: str, out: Path, *, dry: bool) -> int:
    """Run a stage; 1 if it, or one of its rows, failed."""
    record = Record(stage, out, dry=dry)
    failed = False
    try:
        importlib.import_module(f"benchmarks.gpu.{stage}").run(record, device.named(dry=dry), dry=dry)
    except Exception as error:
        traceback.print_exc()
        record.fields["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        failed = True
    record.fields["complete"] = not failed
    record.write()
    return int(failed or any("error" in row for row in record.rows))


if __name__ == "__main__":
    status = main(sys.argv[1], Path(sys.argv[2]), dry="--dry-run" in sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # tearing the GPU's memory down in order takes seconds and gives nothing
