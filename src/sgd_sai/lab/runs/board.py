"""The curves of a run for TensorBoard.

torch's SummaryWriter writes in a thread of its own, which answers a full disk with a traceback.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Board:
    """A file of events in a folder, which is created if it is missing."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Begin a file; what files of before say about `purge_step` and later steps does not count."""
        folder.mkdir(exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        begun = SessionLog(status=SessionLog.SessionStatus.START)
        self._add(Event(wall_time=now, file_version="brain.Event:2"))
        self._add(Event(wall_time=now, step=purge_step, session_log=begun))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add a point of each curve."""
        curves = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=curves)))

    def _add(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
