"""Ctrl-C in the course of a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the function that this yields is called, between two steps.

    In the middle of one it could leave half a line. A second Ctrl-C is not held back.
    """
    pending = False

    def heed() -> None:
        if pending:
            raise KeyboardInterrupt

    def hold(signum: int, frame: FrameType | None) -> None:
        nonlocal pending
        pending = True
        signal.signal(signal.SIGINT, previous)

    if threading.current_thread() is not threading.main_thread():  # signals are not its business
        yield heed
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:
        signal.signal(signal.SIGINT, hold)
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, previous)
