"""Files are written whole or not at all, where nobody has laid anything out for them; and read as UTF-8."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sgd_sai.files import locked, write_aside

ROOT = Path(__file__).parents[1]


def test_a_planted_link_leads_nowhere(tmp_path: Path) -> None:
    """Neither one of the name that was once taken aside, nor one in the place of the file itself."""
    target, path = tmp_path / "target", tmp_path / "file"
    target.write_bytes(b"kept")
    (tmp_path / f".file.{os.getpid()}").symlink_to(target)
    path.symlink_to(target)
    write_aside(path, b"new")
    assert target.read_bytes() == b"kept"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()


def test_what_is_there_already_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor removed, if someone has guessed the name."""
    target, path = tmp_path / "target", tmp_path / "file"
    target.write_bytes(b"kept")
    (tmp_path / ".guessed.part").symlink_to(target)
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    with pytest.raises(FileExistsError):
        write_aside(path, b"new")
    assert target.read_bytes() == b"kept"
    assert (tmp_path / ".guessed.part").is_symlink()
    assert not path.exists()


def test_names_aside_are_never_the_same(tmp_path: Path) -> None:
    """Threads of one process write one file, each its own aside, and one of these is there in the end."""
    path = tmp_path / "file"
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_aside, args=(path, content)) for content in contents * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_longest_name_that_a_file_can_have(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_aside(path, "whole")
    assert path.read_text("utf-8") == "whole"


@pytest.mark.parametrize(("umask", "before", "after"), [
    (0o022, None, 0o644), (0o077, None, 0o600), (0o022, 0o600, 0o600), (0o077, 0o664, 0o664),
])  # fmt: skip
def test_permissions(umask: int, before: int | None, after: int, tmp_path: Path) -> None:
    """Those of a file that is there already are kept; a new one has what the user's umask says."""
    path = tmp_path / "file"
    if before is not None:
        path.touch()
        path.chmod(before)
    code = (
        f"import os, pathlib, sys; os.umask({umask}); from sgd_sai.files import write_aside; "
        "write_aside(pathlib.Path(sys.argv[1]), 'new')"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == after
    assert path.read_text("utf-8") == "new"


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    """As /dev/null, which would be a file from then on, and a pipe that someone reads."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_aside(pipe, "content")
    reader.join()
    assert read == [b"content"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(IsADirectoryError):
        write_aside(tmp_path, "content")


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from sgd_sai.files import write_aside\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
        "try: write_aside(Path(sys.argv[1]), b'x' * 100)\n"
        "except OSError: sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 3
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_lock_empties_nothing(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / ".lock"
    target.write_bytes(b"kept")
    path.symlink_to(target)
    with locked(path):
        assert target.read_bytes() == b"kept"


def test_a_pipe_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    os.mkfifo(path)  # opening it would wait for another end
    with pytest.raises(OSError, match="no file"), locked(path):
        pass


def in_the_locales_encoding(source: str) -> list[str]:
    """The calls of a source that read or write text without naming an encoding."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) in ("os.open", "Image.open"):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = any(keyword.arg == "encoding" for keyword in node.keywords)
        texts = [
            each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        binary = any("b" in text and set(text) <= set("rwxab+") for text in texts)
        encoded = {"read_text": len(node.args) > 0, "write_text": len(node.args) > 1, "open": binary}
        if called in encoded and not named and not encoded[called]:
            found.append(ast.unparse(node))
    return found


def test_text_is_utf8_whatever_the_locale_says() -> None:
    folders = [ROOT / name for name in ("src", "scripts", "research", "benchmarks", "examples")]
    found = {
        str(path.relative_to(ROOT)): calls
        for folder in folders
        for path in folder.rglob("*.py")
        if (calls := in_the_locales_encoding(path.read_text("utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(("line", "wrong"), [
    ("path.read_text()", True), ("path.read_text('utf-8')", False), ("path.open()", True),
    ("open(p, 'w')", True), ("path.open('xb')", False), ("path.write_text(x)", True),
    ("open(p, encoding='utf-8')", False),
])  # fmt: skip
def test_a_missing_encoding_is_seen(line: str, wrong: bool) -> None:
    assert bool(in_the_locales_encoding(line)) == wrong
