"""Ctrl-C: the first ends a command in order, a later one at once.

In order: with the records of its runs and their report. Presses that follow the first within a second are
that press, as of a key that is held: what they interrupt would be the end itself, and could wait for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130
_ONE_PRESS = 1.0  # seconds
_SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar hides


class _Presses:
    """What has been pressed in this process, and what holds the first press back."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.held = self.pending = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
            if not self.held:
                raise KeyboardInterrupt
            self.pending = True
        elif now - self.first > _ONE_PRESS:
            _end_at_once()


_presses: _Presses | None = None


@contextmanager
def heeded(*, to_the_end: bool = True) -> Iterator[None]:
    """Heed Ctrl-C as above; `to_the_end`: and after a press no more, as this process is about to end."""
    global _presses
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # signals are not this thread's business, or already another's
        return
    _presses = presses = _Presses()
    signal.signal(signal.SIGINT, presses)
    try:
        yield
    finally:
        over = to_the_end and presses.first is not None
        signal.signal(signal.SIGINT, signal.SIG_IGN if over else signal.default_int_handler)
        _presses = None


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Hold the first press back until the function that this yields is called, as between two steps.

    In the middle of one it could leave half a line, or TensorBoard's writer waiting for itself.
    """
    with contextlib.nullcontext() if _presses else heeded(to_the_end=False):
        presses = _presses if threading.current_thread() is threading.main_thread() else None

        def heed() -> None:
            if presses is not None and presses.pending:
                presses.pending = False
                raise KeyboardInterrupt

        if presses is None or presses.held:
            yield heed
            return
        presses.held = True
        try:
            yield heed
        finally:
            presses.held = False


def _end_at_once() -> None:
    """Without a word to whoever may be stuck; processes that were started see it, and end as well."""
    with contextlib.suppress(OSError):
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + b"sgd-sai: interrupted\n")
    os._exit(EXIT_CODE)
