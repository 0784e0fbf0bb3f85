"""The picture in docs/architecture.md is the one that its command draws, and shows the imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from scripts import import_graph as graphs

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "figures" / "architecture.svg"


def test_the_committed_picture_is_the_one_that_the_command_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "scripts.architecture", str(tmp_path)], check=True, cwd=ROOT)
    drawn = (tmp_path / PICTURE.name).read_text("utf-8")
    assert drawn == PICTURE.read_text("utf-8"), "run python -m scripts.architecture"


def test_every_folder_and_file_at_the_top_is_in_the_picture() -> None:
    (_, *labels) = (text.strip() for text in ElementTree.parse(PICTURE).getroot().itertext() if text.strip())
    words = {word for label in labels for word in re.split(r"[ +]+", label)}
    assert {name for name in graphs.imports(ROOT / "src" / "sgd_sai") if name != "__init__"} <= words


def test_no_box_covers_another_or_leaves_the_picture() -> None:
    root = ElementTree.parse(PICTURE).getroot()
    boxes = [
        tuple(float(rect.get(key, "0")) for key in ("x", "y", "width"))
        for rect in root.iter("{http://www.w3.org/2000/svg}rect")
        if rect.get("class") != "card"
    ]
    assert len(boxes) > 20
    for x, y, wide in boxes:
        assert 0 <= x <= x + wide <= float(root.get("width", "0"))
        assert all(left >= x + wide or left <= x for left, top, _ in boxes if top == y)


def test_the_path_of_a_gradient_names_functions_that_exist() -> None:
    """The list in docs/architecture.md."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    steps = re.findall(r"^\d+\. `([\w.]+)` in `([\w/]+\.py)`:", page, re.MULTILINE)
    assert len(steps) == 10
    for function, file in steps:
        inside = ast.parse((ROOT / "src" / "sgd_sai" / file).read_text("utf-8")).body
        for name in function.split("."):
            found = [node for node in inside if getattr(node, "name", None) == name]
            assert found, f"{function} is not in {file}"
            inside = getattr(found[-1], "body", [])


def package(folder: Path, **files: str) -> Path:
    """A package; `room__file` is a file in a folder."""
    for name, text in files.items():
        path = folder / "house" / f"{name.replace('__', '/') if name != '__init__' else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        if path.parent != folder / "house":
            (path.parent / "__init__.py").touch()
    return folder / "house"


def test_imports_of_every_form_are_found(tmp_path: Path) -> None:
    house = package(
        tmp_path,
        __init__="from house.engine import Engine",
        engine="from .wheels import round as r\nfrom house import nuts",
        nuts="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.engine",
        wheels__round="import house.nuts\nimport os",
        garage__car="def drive():\n    from house import Engine",
        garage__bike="from ..wheels.round import r\nfrom .car import drive",
    )
    assert graphs.imports(house) == {
        "__init__": {"engine"},
        "engine": {"wheels/", "nuts"},
        "garage/": {"engine", "wheels/"},
        "nuts": set(),
        "wheels/": {"nuts"},
    }
    boxes, core = graphs.rooms(graphs.imports(house))
    assert core == {"engine", "wheels/", "nuts"}
    assert boxes == {"garage/": {graphs.CORE}, graphs.CORE: set()}


def test_folders_that_import_each_other_share_a_box() -> None:
    boxes, _ = graphs.rooms({"__init__": {"a"}, "a": set(), "b/": {"c/", "a"}, "c/": {"b/"}, "d/": {"b/"}})
    assert boxes == {graphs.CORE: set(), "b/ + c/": {graphs.CORE}, "d/": {"b/ + c/"}}


def test_arrows_point_down_and_none_is_left_out() -> None:
    graph = {"top": {"middle", "low"}, "middle": {"low"}, "low": set(), "beside": {"low"}}
    rows = graphs.layers(graph, "low")
    assert rows == [["top"], ["beside", "middle"], ["low"]]
    arrows = graphs.reduced(graph)
    assert arrows == [("beside", "low"), ("middle", "low"), ("top", "middle")]
    assert {name: graphs.reach(graph, name) for name in graph}["top"] == {"middle", "low"}
