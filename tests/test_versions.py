"""The versions that pyproject.toml promises, with the other Pythons that this machine has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from other_python import NO_TORCH, ROOT

#: Folders with more Pythons, such as the bin of a virtual environment that has another torch.
FOLDERS = "SGD_SAI_PYTHONS"
MINORS = (10, 11, 12, 13, 14)


def ask(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    return subprocess.run([python, *arguments], capture_output=True, text=True, env=environment)


@cache
def pythons(minor: int) -> list[Path]:
    """The CPythons of a version on this machine, one for each prefix, without the one that runs this."""
    folders = [Path(folder) for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
    if on_path := shutil.which(f"python3.{minor}"):
        folders.append(Path(on_path).parent)
    pyenv = shutil.which("pyenv")
    root = os.environ.get("PYENV_ROOT") or (Path(pyenv).parent.parent if pyenv else None)
    if root is not None:
        folders += sorted(Path(root).glob(f"versions/3.{minor}.*/bin"))
    found = {sys.prefix: Path(sys.executable)}
    for folder in folders:
        python = folder / f"python3.{minor}"
        if python.exists():
            # One of pyenv's stand-ins may have no Python behind it.
            done = ask(python, "-c", "import sys; print(sys.implementation.name, sys.prefix)")
            name, _, prefix = done.stdout.strip().partition(" ")
            if done.returncode == 0 and name == "cpython":
                found.setdefault(prefix, python)
    return list(found.values())[1:]


def others(minor: int) -> list[Path]:
    found = pythons(minor)
    if not found:
        pytest.skip(f"no other Python 3.{minor} on this machine; {FOLDERS} may name its folder")
    return found


@pytest.mark.parametrize("minor", MINORS)
def test_every_source_compiles(minor: int) -> None:
    for python in others(minor):
        done = ask(python, ROOT / "tests" / "other_python.py", "compile")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["files"] > 200
        assert told["errors"] == {}


@pytest.mark.parametrize("minor", MINORS)
def test_the_optimizer_runs(minor: int) -> None:
    """Every module is imported that has what it needs, and steps of all ways agree."""
    ran = False
    for python in others(minor):
        done = ask(python, "-W", "ignore", ROOT / "tests" / "other_python.py", "run")
        if done.returncode == NO_TORCH:
            continue
        assert done.returncode == 0, f"{python}\n{done.stderr}"
        told = json.loads(done.stdout.splitlines()[-1])
        print(told)  # pytest -rP shows which modules were left out
        assert told["imported"] >= 50
        ran = True
    if not ran:
        pytest.skip(f"no other Python 3.{minor} with torch on this machine; {FOLDERS} may name its folder")
