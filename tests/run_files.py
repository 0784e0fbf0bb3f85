"""The files of runs, looked at and changed."""

from __future__ import annotations

import json
from pathlib import Path


def files_of(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """What the files of a folder hold, and when each was written last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def set_status(folder: Path, status: str) -> None:
    """Make the record say that its run has not ended."""
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": status, "result": None}))
