"""Draws docs/figures/architecture.svg: `python -m scripts.architecture [FOLDER]`.

A box is a folder of the package. An arrow points down, from a folder to one that it imports; the layers
follow from the arrows. The optimizer is one box at the bottom: the files that `import sgd_sai` reads at the
top of the package, and what they import.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from scripts.import_graph import CORE, Graph, imports, layers, reduced, rooms

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "sgd_sai"
FIGURE = ROOT / "docs" / "figures" / "architecture.svg"

WIDTH, MARGIN = 384, 12  # as wide as the text on a phone: nothing is scaled down there
BOX, CHIP, GAP = 34, 24, 10
BETWEEN = 44  # where the arrows run
WIRE = 14  # the place that an arrow takes in a layer that it crosses

STYLE = """
text { font: 600 13px system-ui, sans-serif; fill: #1f2328; text-anchor: middle; dominant-baseline: central }
.chip text { font: 12px ui-monospace, Menlo, Consolas, monospace }
.small { font-weight: 400; font-size: 11px; fill: #57606a }
.card { fill: #ffffff }
.box { fill: #f3f4f6; stroke: #8c959f }
.core { fill: #fff1e9; stroke: #c2410c }
.chip rect { fill: #ffffff; stroke: #e3a583 }
path { fill: none; stroke: #8c959f; stroke-width: 1.3 }
marker path { fill: #8c959f; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8eb }
  .small { fill: #a3abb5 }
  .card { fill: #1e2129 }
  .box { fill: #2b303b; stroke: #717a87 }
  .core { fill: #33241d; stroke: #e8824f }
  .chip rect { fill: #1e2129; stroke: #8a5a41 }
  path { stroke: #828b98 }
  marker path { fill: #828b98 }
}
"""
#: The point of an arrow.
TIP = """<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
orient="auto">
<path d="M0 0L8 4L0 8z"/></marker>"""


def width(name: str, per_letter: float = 7.4) -> float:
    """A safe guess of the width of a box with a name in it."""
    return len(name) * per_letter + 20


def spread(names: list[str], widths: Mapping[str, float]) -> dict[str, float]:
    """The middles of boxes that stand side by side, the space around them even."""
    space = (WIDTH - 2 * MARGIN - sum(widths[name] for name in names)) / (len(names) + 1)
    middles, x = {}, MARGIN + space
    for name in names:
        middles[name] = x + widths[name] / 2
        x += widths[name] + space
    return middles


def fitting(rows: list[list[str]], boxes: Graph) -> list[list[str]]:
    """The rows, a row that is too wide as two: what imports nothing moves into the lower one."""
    fit: list[list[str]] = []
    for row in rows:
        if sum(width(name, 8.0) + GAP for name in row if name != CORE) <= WIDTH - 2 * MARGIN:
            fit.append(row)
            continue
        upper, lower = [name for name in row if boxes[name]], [name for name in row if not boxes[name]]
        fit += [part for part in (upper, lower) if part]
    return fit


def chips(core: Collection[str], graph: Graph) -> list[list[str]]:
    """The lines of names in the box of the optimizer: its layers, each as many lines as it needs."""
    inner = {name: {to for to in graph[name] if to in core} for name in core}
    lines: list[list[str]] = []
    for layer in layers(inner):
        lines.append([])
        for name in layer:
            if sum(width(other) + 8 for other in [*lines[-1], name]) > WIDTH - 4 * MARGIN:
                lines.append([])
            lines[-1].append(name)
    return lines


def draw(package: Path = PACKAGE) -> str:
    """The picture, as SVG."""
    graph = imports(package)
    boxes, core = rooms(graph)
    lines = chips(core, graph)
    rows = fitting(layers(boxes, CORE), boxes)
    arrows = reduced(boxes)
    heights = {name: BOX for name in boxes} | {CORE: 34 + len(lines) * (CHIP + 8) + 4}
    widths = {name: width(name, 8.0) for name in boxes} | {CORE: WIDTH - 2 * MARGIN}
    paths = _with_wires(rows, arrows, widths, heights)
    _ordered(rows, paths)
    middles: dict[str, float] = {}
    tops: dict[str, float] = {}
    y = float(MARGIN)
    for row in rows:
        middles |= spread(row, widths)
        tops |= dict.fromkeys(row, y)
        y += max(heights[name] for name in row) + BETWEEN
    total = y - BETWEEN + MARGIN
    parts = [_arrow(path, middles, tops, heights) for path in paths]
    parts += [_box(name, middles[name], tops[name], widths[name], heights[name]) for name in boxes]
    for index, line in enumerate(lines):
        places = spread(line, {name: width(name) for name in line})
        top = tops[CORE] + 34 + index * (CHIP + 8)
        parts += [_chip(name, x, top) for name, x in places.items()]
    said = "; ".join(f"{name} imports {', '.join(sorted(to))}" for name, to in sorted(boxes.items()) if to)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{total:.0f}" '
            f'viewBox="0 0 {WIDTH} {total:.0f}" role="img">',
            f"<title>{said}</title>",
            f"<style>{STYLE}</style>",
            TIP,
            f'<rect class="card" width="{WIDTH}" height="{total:.0f}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _with_wires(
    rows: list[list[str]], arrows: list[tuple[str, str]], widths: dict[str, float], heights: dict[str, int]
) -> list[list[str]]:
    """The arrows as the names that they pass: in each layer between, a wire is added as a narrow box."""
    level = {name: index for index, row in enumerate(rows) for name in row}
    paths = []
    for start, end in arrows:
        path = [start]
        for index in range(level[start] + 1, level[end]):
            wire = f"{start}→{end} {index}"
            rows[index].append(wire)
            widths[wire], heights[wire] = WIRE, BOX
            path.append(wire)
        paths.append([*path, end])
    return paths


def _ordered(rows: list[list[str]], paths: list[list[str]]) -> None:
    """Order each layer so that few arrows cross: by the mean place of what each box is joined to."""
    joined: dict[str, set[str]] = {}
    for path in paths:
        for above, below in itertools.pairwise(path):
            joined.setdefault(above, set()).add(below)
            joined.setdefault(below, set()).add(above)
    for _ in range(8):
        for of in (rows, rows[::-1]):
            place: dict[str, float] = {}
            for row in of:
                known = {
                    name: [place[other] for other in joined.get(name, ()) if other in place] for name in row
                }
                row.sort(key=lambda name: (sum(known[name]) / len(known[name]) if known[name] else 0.5, name))
                place |= {name: (index + 0.5) / len(row) for index, name in enumerate(row)}


def _arrow(
    path: list[str], middles: Mapping[str, float], tops: Mapping[str, float], heights: Mapping[str, int]
) -> str:
    x, y = middles[path[0]], tops[path[0]] + heights[path[0]]
    drawn = f"M{x:.0f} {y:.0f}"
    for name in path[1:]:
        # The box of the optimizer is as wide as the picture: an arrow enters where it comes from.
        to = x if name == CORE else middles[name]
        end = tops[name] - (1 if name == path[-1] else 0)
        middle = (y + end) / 2
        drawn += f"C{x:.0f} {middle:.0f} {to:.0f} {middle:.0f} {to:.0f} {end:.0f}"
        x, y = to, tops[name] + heights[name]
        if name != path[-1]:
            drawn += f"V{y:.0f}"
    return f'<path d="{drawn}" marker-end="url(#tip)"/>'


def _box(name: str, x: float, top: float, wide: float, high: int) -> str:
    kind = "core" if name == CORE else "box"
    label = f'<text x="{x:.0f}" y="{top + 17:.0f}">{name}</text>'
    if name == CORE:
        note = '<tspan class="small"> · each line imports from lines below it</tspan>'
        label = label.replace("</text>", f"{note}</text>")
    left = x - wide / 2
    rect = f'<rect class="{kind}" x="{left:.0f}" y="{top:.0f}" width="{wide:.0f}" height="{high}" rx="6"/>'
    return rect + label


def _chip(name: str, x: float, top: float) -> str:
    wide = width(name)
    return (
        f'<g class="chip"><rect x="{x - wide / 2:.0f}" y="{top:.0f}" '
        f'width="{wide:.0f}" height="{CHIP}" rx="12"/>'
        f'<text x="{x:.0f}" y="{top + CHIP / 2:.0f}">{name}</text></g>'
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURE.parent
    (folder / FIGURE.name).write_text(draw(), "utf-8")
