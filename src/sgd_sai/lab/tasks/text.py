"""Texts to learn from: files, folders, parquet, the standard library; each in two parts, one held out."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sgd_sai.lab.tasks import parquet

HELD_OUT = 10  # one file in so many


def standard_library() -> tuple[Path, list[Path]]:
    """Return the folder of the running interpreter's library and its modules, without tests."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
    files = (path for path in root.rglob("*.py") if not left_out & set(path.relative_to(root).parts))
    return root, sorted(files)


def files_of(path: Path) -> tuple[Path, list[Path]]:
    """Return a folder and all files below it, or the folder of a file and the file."""
    if not path.exists():
        raise ValueError(
            f"--data: given {path}, which does not exist; allowed: a text file or a folder of them"
        )
    if path.is_file():
        return path.parent, [path]
    return path, sorted(file for file in path.rglob("*") if file.is_file())


def split(root: Path, files: list[Path], context: int) -> tuple[bytes, bytes]:
    """Return (training, held-out) text: every tenth file, by hash, is held out; of one file, its end.

    Of parquet, as data sets of text come from the hub, the rows of the column text, a line end after each.
    """
    texts = {
        file.relative_to(root).as_posix(): content
        for file in files
        if (content := _content(file)) is not None
    }
    if len(texts) == 1:
        (content,) = texts.values()
        cut = len(content) - len(content) // HELD_OUT
        train, held_out = content[:cut], content[cut:]
    else:
        # The names in the order of their hashes, so that the split does not depend on what else is there.
        names = sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_names = set(names[::HELD_OUT])
        train = _joined(texts[name] for name in texts if name not in held_names)
        held_out = _joined(texts[name] for name in texts if name in held_names)
    return _enough(train, held_out, files[0] if len(files) == 1 else root, context)


def of_two(train: Path, held_out: Path, context: int) -> tuple[bytes, bytes]:
    """Return the (training, held-out) text of two files."""
    return _enough(_content(train) or b"", _content(held_out) or b"", train.parent, context)


def _enough(train: bytes, held_out: bytes, source: Path, context: int) -> tuple[bytes, bytes]:
    if min(len(train), len(held_out)) <= 2 * context:
        raise ValueError(
            f"--data: {source} holds {len(train)} bytes of text to train on "
            f"and {len(held_out)} to hold out; needed: more than {2 * context} of each"
        )
    return train, held_out


def _content(file: Path) -> bytes | None:
    """Return the file as UTF-8; None if it is no text."""
    try:
        if file.suffix == ".parquet":
            return parquet.read([file], "text", "text in parquet", _rows)
        content = file.read_bytes()
        content.decode()
    except OSError as error:
        raise ValueError(f"--data: cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        return None
    return content


def _rows(table: Any) -> bytes:
    """Return the column text of a data set."""
    import datasets

    if "text" not in table.column_names:
        raise ValueError(f"columns {', '.join(table.column_names)}; needed: text")
    rows = table.cast_column("text", datasets.Value("string"))["text"]
    return _joined(row.encode() for row in rows if row is not None)


def _joined(texts: Iterable[bytes]) -> bytes:
    return b"\n".join(texts)
