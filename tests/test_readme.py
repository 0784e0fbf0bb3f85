"""The README's figures are those of the records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_tables_are_those_of_the_records() -> None:
    check = [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
