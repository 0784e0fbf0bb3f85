"""What the lab's files hold, as type annotations, and the one function that compares a value with them.

A schema is a dataclass or a `TypedDict`. In its annotations may stand dict, list, Literal, `X | None`, int,
float, bool, str, `Any` for all that JSON has, and any other class for its instances. `Annotated` adds a
`Range`, or the schema of what the code takes as a plain dict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

_LARGEST = 1e100  # of numbers: their squares are finite too
_DEEPEST = 20  # lists in lists where anything may stand
_SHOWN = 40  # characters of a value in an error
_WHOLE = "it"  # what errors call all that is checked


@dataclass(frozen=True)
class Range:
    """A number from `least` on, or above it if it is `open`."""

    least: float
    open: bool = False

    def __str__(self) -> str:
        """Return it as errors say it."""
        return f"{'>' if self.open else '≥'} {self.least:g}"


Count = Annotated[int, Range(0)]
AtLeastOne = Annotated[int, Range(1)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, open=True)]


def parse(text: str) -> Any:
    """Return what JSON says; ValueError, one line, also for lists in lists without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def check(schema: Any, value: Any, at: str = _WHOLE) -> Any:
    """Return `value` as `schema` has it: objects as its dataclasses, and keys as integers where it says so.

    Keys that a `TypedDict` does not name stay as they are. `at`: where the value stands, for errors.

    Raises:
        ValueError: one line, which names the first place where they differ.
    """
    kind, inner = get_origin(schema) or schema, get_args(schema)
    if kind is Annotated:
        value = check(inner[0], value, at)
        return check(inner[1], value, at) if not isinstance(inner[1], Range) else _within(inner[1], value, at)
    if kind in (Union, UnionType):  # of one type and None
        (some,) = (each for each in inner if each is not type(None))
        return None if value is None else check(some, value, at)
    if kind is Literal:
        return value if value in inner else _differs(at, value, " or ".join(map(repr, inner)))
    if kind is Any:
        return _json(value, at)
    if kind is list:
        each = _of(list, value, at, "a list")
        return [check(inner[0], member, f"{at}[{place}]") for place, member in enumerate(each)]
    if kind is dict:
        members = _of(dict, value, at, "an object").items()
        return {check(inner[0], _key(inner[0], name), at): check(inner[1], member, _inside(at, name))
                for name, member in members}  # fmt: skip
    if is_dataclass(kind) or is_typeddict(kind):
        return _members(kind, _of(dict, value, at, "an object"), at)
    if kind in (int, float):
        return _number(kind, value, at)
    if kind is str:
        return _of(str, value, at, "a text")
    return _of(kind, value, at, kind.__name__)


def _members(schema: Any, value: Mapping[str, Any], at: str) -> Any:
    """Return an object whose members a dataclass or a `TypedDict` names."""
    hints, plain = _hints(schema), is_typeddict(schema)
    if plain:
        needed = schema.__required_keys__
    else:
        needed = {each.name for each in fields(schema) if each.default is MISSING}
        if unknown := sorted(value.keys() - hints.keys()):
            raise ValueError(f"{at} has {_short(unknown[0])}, which is not known")
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{at} lacks {missing[0]!r}")
    found = {name: check(hints.get(name, Any), member, _inside(at, name)) for name, member in value.items()}
    return found if plain else schema(**found)


def _inside(at: str, name: Any) -> str:
    return str(name) if at == _WHOLE else f"{at}.{name}"


@lru_cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def _key(schema: Any, name: str) -> Any:
    """Return a key as it was before JSON made a text of it."""
    kind = get_args(schema)[0] if get_origin(schema) is Annotated else schema
    return int(name) if kind is int and isinstance(name, str) and name.isdecimal() else name


def _number(kind: type, value: Any, at: str) -> Any:
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not abs(value) <= _LARGEST:
        _differs(at, value, "an integer" if kind is int else "a finite number")
    return value


def _within(range: Range, value: Any, at: str) -> Any:
    if value < range.least or (range.open and value == range.least):
        _differs(at, value, str(range))
    return value


def _json(value: Any, at: str, depth: int = 0) -> Any:
    """Return what may be anything, as long as it can be written again."""
    if depth > _DEEPEST:
        raise ValueError(f"{at} is nested too deeply")
    if isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _json(each, at, depth + 1)
    elif isinstance(value, float):
        _number(float, value, at)
    return value


def _of(kind: type, value: Any, at: str, words: str) -> Any:
    return value if isinstance(value, kind) else _differs(at, value, words)


def _differs(at: str, value: Any, allowed: str) -> NoReturn:
    raise ValueError(f"{at} is {_short(value)}; allowed: {allowed}")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, lists in lists
        text = "too long to be shown"
    text = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
