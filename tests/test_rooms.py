"""The rooms of the package: a room imports from itself and from lower rooms, never from a higher one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "sgd_sai"

#: Folders of the optimizer, to which the files beside `__init__.py` belong too, but those that `ROOMS` names.
OPTIMIZER = {"distributed", "kernels", "update"}

#: From the lowest to the highest, in groups; the rooms of one group do not import each other.
ROOMS = (
    ("optimizer",),
    ("diagnostics",),
    ("sgd_sai",),  # the public names
    ("cli",),
    ("factory", "files", "html", "integrations", "peers"),
    ("memory",),
    ("lab",),
    ("bench", "tools"),
)
HEIGHT = {room: height for height, group in enumerate(ROOMS) for room in group}

#: (file, module): what may be imported all the same. None is needed.
EXCEPTIONS: set[tuple[str, str]] = set()


def room_of(module: str) -> str:
    """The room of a module of the package."""
    parts = module.split(".")
    if len(parts) == 1:
        return "sgd_sai"
    if parts[1] in HEIGHT or ((PACKAGE / parts[1]).is_dir() and parts[1] not in OPTIMIZER):
        return parts[1]
    return "optimizer"


def exists(module: str) -> bool:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(source: str, module: str) -> Iterator[str]:
    """The modules of the package that a source imports, also within functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sgd_sai")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative imports are not used here"
            if node.module is not None and node.module.split(".")[0] == "sgd_sai":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if exists(inner) else node.module


def wrong(source: str, module: str) -> list[str]:
    """The imports of a source that go up, or to another room of the same height."""
    own = room_of(module)
    return [
        found
        for found in imported(source, module)
        if room_of(found) != own
        and HEIGHT[room_of(found)] >= HEIGHT[own]
        and (module, found) not in EXCEPTIONS
    ]


def sources() -> dict[str, str]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
    return found


def test_every_room_has_a_height() -> None:
    assert {room_of(module) for module in sources()} <= HEIGHT.keys()


def test_no_room_imports_a_higher_one() -> None:
    up = {module: found for module, source in sources().items() if (found := wrong(source, module))}
    assert up == {}


@pytest.mark.parametrize(("module", "line", "found"), [
    ("sgd_sai.optimizer", "from sgd_sai import gsnr", []),
    ("sgd_sai.optimizer", "from sgd_sai import GSNRRecorder", ["sgd_sai"]),
    ("sgd_sai.update.cpu", "import sgd_sai.lab.records", ["sgd_sai.lab.records"]),
    ("sgd_sai.diagnostics.recorder", "def f():\n    from sgd_sai import lab", ["sgd_sai.lab"]),
    ("sgd_sai.lab.records", "from sgd_sai.tools.workload import Workload", ["sgd_sai.tools.workload"]),
    ("sgd_sai.tools.output", "from sgd_sai.bench import timing", ["sgd_sai.bench.timing"]),
    ("sgd_sai.tools.output", "from sgd_sai.lab.records import write_aside", []),
])  # fmt: skip
def test_an_import_is_seen_wherever_it_stands(module: str, line: str, found: list[str]) -> None:
    assert wrong(line, module) == found
