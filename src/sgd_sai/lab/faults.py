"""What goes wrong with files, as one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sgd_sai.cli import CommandError

_REASON = 200  # characters of it


class UnusableRun(ValueError):
    """A run cannot be read, or not be gone on with; one line, which begins with its path or an argument."""


class DamagedRun(UnusableRun):
    """A file of a run has not the form in which the lab writes it; one line, which begins with its path."""


@contextmanager
def damage_named(path: Path, what: str) -> Iterator[None]:
    """Turn what is wrong with a file, OSError or ValueError, into `DamagedRun`: the file is not `what`."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:_REASON]
        raise DamagedRun(f"{path}: not {what} ({reason})") from None


@contextmanager
def faults_told(option: str, out: Path) -> Iterator[None]:
    """Turn an `UnusableRun`, and what keeps files from being written to `out`, into the command's error."""
    try:
        yield
    except UnusableRun as error:
        raise CommandError(str(error)) from None
    except OSError as error:  # such as a disk that is full, whose error does not name the file
        raise CommandError(f"{option}: cannot write to {out}: {_reason(error)}") from None


@contextmanager
def then_reported(report: Callable[[], None]) -> Iterator[None]:
    """Report afterwards, also after an error or Ctrl-C, which is then told, whatever the report meets."""
    try:
        yield
    except BaseException:
        with suppress(UnusableRun, OSError):
            report()
        raise
    report()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)) + (f" ({error.filename})" if error.filename else "")
