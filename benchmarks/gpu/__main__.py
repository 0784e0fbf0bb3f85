"""The command: the stages one after the other, each in its own process, then a table of all figures."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import table
from sgd_sai.files import write_json

LIMITS = {"tests": 150, "step": 240, "first_step": 40, "llama": 110}  # seconds of each stage
_DRY = 10  # times as long for a dry run, on a CPU that may be busy
_TAIL = 40  # lines of stderr that are shown of a stage that fails


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0, or 1 if a stage failed, or 2 if nothing could be run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="The proof on a real GPU.")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(LIMITS)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs", "gpu"), metavar="FOLDER")
    parser.add_argument("--force", action="store_true", help="also the stages whose records are there")
    parser.add_argument("--dry-run", action="store_true", help="every stage at toy size, on the CPU")
    args = parser.parse_args(argv)
    stages = list(LIMITS) if args.only is None else args.only.split(",")
    unknown = [stage for stage in stages if stage not in LIMITS]
    if unknown:
        print(f"gpu: --only: given {unknown[0]!r}; allowed: {', '.join(LIMITS)}", file=sys.stderr)
        return 2
    if not args.dry_run and not torch.cuda.is_available():
        print("gpu: this machine has no GPU that torch can use; nothing was measured", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    failed = [stage for stage in stages if not _runs(stage, args.out, force=args.force, dry=args.dry_run)]
    _show(stages, args.out)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def _runs(stage: str, out: Path, *, force: bool, dry: bool) -> bool:
    """Run a stage unless its record is there; False if it fails."""
    path = out / f"{stage}.json"
    before = _read(path)
    if before and before["complete"] and not force:
        print(f"{stage}: its record is there; --force measures again", flush=True)
        return True
    limit = LIMITS[stage] * (_DRY if dry else 1)
    print(f"{stage}: at most {limit} s", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        status = _process(stage, out, errors, limit, dry=dry)
        errors.seek(0)
        tail = [text[:160] for text in errors.read().splitlines()[-_TAIL:]]
    took = time.monotonic() - begin
    if status == 0:
        print(f"{stage}: done in {took:.0f} s", flush=True)
        return True
    ended = f"cut off after {took:.0f} s" if status is None else f"ended with status {status}"
    print(f"{stage}: {ended}; the last lines of its stderr:", *tail, sep="\n", flush=True)
    if (record := _read(path)) and record != before:
        # What was measured before stays, marked.
        write_json(path, {**record, "ended": ended, "stderr": tail})
    return False


def _process(stage: str, out: Path, errors: Any, limit: float, *, dry: bool) -> int | None:
    """The status of a stage's process, None if its time ran out."""
    words = [sys.executable, "-m", "benchmarks.gpu.worker", stage, str(out), *["--dry-run"] * dry]
    with subprocess.Popen(words, stderr=errors, start_new_session=True) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Its own workers too: they hold memory of the GPU.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _show(stages: Sequence[str], out: Path) -> None:
    for stage in stages:
        record = _read(out / f"{stage}.json")
        shown = [f"{stage}: no record"] if record is None else table.lines(stage, record)
        print(*shown, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
