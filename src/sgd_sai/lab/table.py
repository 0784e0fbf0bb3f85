"""Tables as JSON Lines: a row a line. A value that many rows share is written once, before them.

    {"shared":"machine","number":0,"value":{"processor":"AMD EPYC","cores":2}}
    {"task":"cnn","lr":0.01,"machine":0}
    {"task":"vit","lr":0.001,"machine":0}

A row has the number of a shared value where it would have the value; null stays null.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sgd_sai.files import content, encoded, write_aside
from sgd_sai.lab.schema import parse

Row = dict[str, Any]
#: Column → number → value.
_Shared = dict[str, dict[int, Any]]


def read(path: Path) -> list[Row]:
    """Return the rows; OSError, or ValueError that names the line which is not one of a table."""
    if (found := content(path)) is None:
        raise OSError("it is missing")
    return _parse(found.decode())[0]


def write(path: Path, rows: Iterable[Row], shared: Collection[str] = ()) -> None:
    """Write the rows, their `shared` columns apart. The file is the old one or the new one, never half."""
    known: _Shared = {}
    lines = [_lines(row, shared, known) for row in rows]
    new = [line for of_row, _ in lines for line in of_row]
    write_aside(path, "".join([*new, *(line for _, line in lines)]))


def append(path: Path, row: Row, shared: Collection[str] = ()) -> None:
    """Append one row, also while other processes append theirs; half a line of one that was killed is cut."""
    import fcntl  # which Windows lacks: tables can be read and written there

    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        held = file.read()
        whole = held[: held.rfind(b"\n") + 1]
        file.truncate(len(whole))
        _, known = _parse(whole.decode())
        new, line = _lines(row, shared, known)
        file.write(encoded("".join([*new, line])))


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return column → its values; None in a row that lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def rows(of: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Return the rows of `columns`; ValueError if the columns are not of one length."""
    return [
        {name: value for name, value in zip(of, values, strict=True) if value is not None}
        for values in zip(*of.values(), strict=True)
    ]


def _parse(text: str) -> tuple[list[Row], _Shared]:
    found: list[Row] = []
    known: _Shared = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            row = parse(line)
            if "shared" in row:
                known.setdefault(row["shared"], {})[row["number"]] = row["value"]
                continue
            found.append(
                {
                    name: value if value is None or name not in known else known[name][value]
                    for name, value in row.items()
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"line {number}: {type(error).__name__}: {error}") from None
    return found, known


def _lines(row: Row, shared: Collection[str], known: _Shared) -> tuple[list[str], str]:
    """Return the lines of shared values that are new, which are put into `known`, and the row's own."""
    lines, short = [], dict(row)
    for name in shared:
        if (value := row.get(name)) is None:
            continue
        numbers = known.setdefault(name, {})
        number = next((number for number, other in numbers.items() if other == value), None)
        if number is None:
            number = len(numbers)
            numbers[number] = value
            lines.append(_line({"shared": name, "number": number, "value": value}))
        short[name] = number
    return lines, _line(short)


def _line(row: Row) -> str:
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
