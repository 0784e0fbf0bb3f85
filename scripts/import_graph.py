"""Which folders and files of the package import which, found in their text."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

CORE = "the optimizer"

#: Name → names of what it imports.
Graph = Mapping[str, Collection[str]]


def imports(package: Path) -> dict[str, set[str]]:
    """Return the imports of each file and folder at the top of a package; a folder's name ends with "/".

    Imports for the type checker alone are left out: they do nothing when the code runs.
    """
    tops = {path.stem: path.stem + "/" * path.is_dir() for path in package.iterdir() if _is_code(path)}
    found: dict[str, set[str]] = {name: set() for name in tops.values()}
    public = _public(package)
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package).with_suffix("").parts
        for module in _imported(ast.parse(file.read_text("utf-8")), (package.name, *inside)):
            top = module[1] if len(module) > 1 else "__init__"
            found[tops[inside[0]]].add(tops.get(public.get(top, top), "__init__"))
    return {name: targets - {name} for name, targets in sorted(found.items())}


def _public(package: Path) -> dict[str, str]:
    """The names that the package itself hands out, such as SGDSaI → the file or folder that they are from."""
    names: dict[str, str] = {}
    for node in ast.walk(ast.parse((package / "__init__.py").read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")[0 if node.level else 1 :]
            names |= {alias.asname or alias.name: parts[0] for alias in node.names if parts}
    return names


def _is_code(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").exists()


def _imported(node: ast.AST, here: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The package's modules that a file imports, as parts of their names; `here` is the file's own."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            base = (*here[: len(here) - child.level], *(child.module or "").split(".")) if child.level else ()
            base = tuple(part for part in base or (child.module or "").split(".") if part)
            names = [(*base, alias.name) for alias in child.names]
        else:
            names = []
        yield from (name for name in names if name[0] == here[0])
        yield from _imported(child, here)


def reach(graph: Graph, start: str) -> set[str]:
    """Return the names that one import or several lead to."""
    seen: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def merged(graph: Graph, group: Collection[str], name: str) -> dict[str, set[str]]:
    """The graph with a group of its names as one."""
    renamed = {old: name if old in group else old for old in graph}
    result: dict[str, set[str]] = {new: set() for new in renamed.values()}
    for old, targets in graph.items():
        result[renamed[old]] |= {renamed[target] for target in targets} - {renamed[old]}
    return result


def rooms(graph: Graph) -> tuple[dict[str, set[str]], set[str]]:
    """The graph of the boxes, and the names that the box of the optimizer contains.

    That box starts with the files that `import sgd_sai` reads at the top of the package. What they import
    belongs to it, too.
    """
    files = {name: {to for to in targets if not to.endswith("/")} for name, targets in graph.items()}
    core = reach(files, "__init__") - {"__init__"}
    graph = {name: {to for to in targets if to != "__init__"} for name, targets in graph.items()}
    del graph["__init__"]
    core |= {to for name in core for to in reach(graph, name)}
    boxes = merged(graph, core, CORE)
    for name in list(boxes):  # other folders that import each other, should there be any, share a box
        circle = (
            {other for other in reach(boxes, name) if name in reach(boxes, other)} if name in boxes else set()
        )
        if circle:
            boxes = merged(boxes, circle, " + ".join(sorted(circle)))
    return boxes, core


def layers(graph: Graph, bottom: str | None = None) -> list[list[str]]:
    """The names in layers, the top first: each imports from lower layers alone, or from its circle.

    `bottom` is the name that has the lowest layer to itself.
    """
    depth: dict[str, int] = {}

    def find(name: str) -> int:
        if name not in depth:
            depth[name] = 0  # for a circle that comes back
            lowest = 0 if bottom and name != bottom else -1
            depth[name] = 1 + max((find(to) for to in sorted(graph[name])), default=lowest)
        return depth[name]

    for name in sorted(graph):
        find(name)
    return [
        sorted(name for name in graph if depth[name] == d) for d in reversed(range(max(depth.values()) + 1))
    ]


def reduced(graph: Graph) -> list[tuple[str, str]]:
    """The arrows without those that a way through another box makes unnecessary."""
    return [
        (name, to)
        for name, targets in sorted(graph.items())
        for to in sorted(targets)
        if not any(to in reach(graph, other) for other in targets)
    ]
