"""What a command prints. That it cannot be printed never ends the command.

A character that a stream cannot encode is replaced. What comes after the reader has gone, as that of `| head`
does, is dropped. On a disk that is full it is dropped, too, and the command says so at its end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

#: Of a reader that has gone: EINVAL is Windows' word for it.
_GONE = (errno.EPIPE, errno.EINVAL)


class _Patient:
    """A stream of text that swallows what cannot be printed. All else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None  # the first, unless the reader has only gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be encoded, and `?` for the rest."""
        try:
            self._try(lambda: self._stream.write(text))
        except UnicodeEncodeError as error:
            encodable = text.encode(error.encoding, "replace").decode(error.encoding)
            self._try(lambda: self._stream.write(encodable))
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        """Write the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            if error.errno not in _GONE and self.failure is None:
                self.failure = error
            self._drop()

    def _drop(self) -> None:
        """Drop what waits to be written, and what follows: Python, too, flushes at its end."""
        with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def patient() -> Iterator[Callable[[], OSError | None]]:
    """Print patiently. Yields a function: why the standard output could not take all, None if it could.

    A stream that was closed before, as by `>&-`, drops all: no file that is opened then takes its place.
    """
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        for descriptor in range(3):
            try:
                os.fstat(descriptor)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        nowhere = opened.enter_context(open(os.devnull, "w", encoding="utf-8"))
        out, errors = (_Patient(nowhere if stream is None else stream) for stream in before)
        sys.stdout, sys.stderr = out, errors

        def failure() -> OSError | None:
            out.flush()
            return out.failure

        try:
            yield failure
        finally:
            out.flush()
            errors.flush()
            sys.stdout, sys.stderr = before
