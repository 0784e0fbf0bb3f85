"""Files that are written whole or not at all, JSON that reads well, and locks between processes."""

from __future__ import annotations

import errno
import json
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# Characters of JSON that stay on one line, whatever they hold.
_SHORT = 140


def content(path: Path) -> bytes | None:
    """Return the bytes of a file; None if there is none; OSError if a folder, say, has its name."""
    if not path.exists():
        return None
    if not path.is_file():  # reading from a pipe, or from /dev/zero, might never end
        raise OSError("it is no file")
    return path.read_bytes()


def appended(path: Path) -> BinaryIO:
    """Open a file for appending, a new one if there is none; OSError if a pipe, say, has its name.

    Opening a pipe might never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.open("ab")


def write_aside(path: Path, content: str | bytes) -> None:
    """Write a file aside and rename it: it is the old one or the new one, never half of it.

    A file keeps its permissions. A link is replaced, and what it points to stays as it is; but what is no
    file, such as /dev/null or a pipe, is written to.
    """
    whole = encoded(content) if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(whole)
        return
    aside = path.with_name(f".{secrets.token_hex(8)}.part")
    file = aside.open("xb")  # new, and behind no link: others may write into the folder as well
    try:
        with file:
            if path.is_file() and not path.is_symlink():
                aside.chmod(stat.S_IMODE(path.stat().st_mode))
            file.write(whole)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def encoded(text: str) -> bytes:
    """Return UTF-8; halves of characters, which names of files may hold, as codes, as JSON has them."""
    return text.encode(errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `as_json(value)` aside and rename it."""
    write_aside(path, as_json(value))


def as_json(value: Any) -> str:
    """Return JSON with a line for each member, but one for what is short or holds no list and no object.

    Raises:
        ValueError: a NaN or an infinity, which JSON has not.
    """
    return _indented(value, "\n") + "\n"


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process holds `path`, an empty file, and hold it; a dying process lets it go.

    `waiting` is called once if another process holds it.
    """
    import fcntl  # which Windows lacks: records can be read there

    with appended(path) as lock:  # behind a link there may be a file that holds something
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _indented(value: Any, newline: str) -> str:
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if len(line) <= _SHORT or not any(isinstance(each, dict | list | tuple) for each in members):
        return line
    inner = newline + " "
    lines = [_indented(each, inner) for each in members]
    if isinstance(value, dict):
        lines = [
            f"{json.dumps(str(name), ensure_ascii=False)}: {line}"
            for name, line in zip(value, lines, strict=True)
        ]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return left + inner + f",{inner}".join(lines) + newline + right
