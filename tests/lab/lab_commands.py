"""The lab's commands, run in this process or in another one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from sgd_sai.lab.records import METRICS


def compare(out, *more, task="cnn", steps=60, optimizer="sgd-sai", lr="0.5"):
    """The arguments of a small run of a real model."""
    given = ["compare", "--task", task, "--optimizer", optimizer, "--steps", str(steps), "--threads", "1"]
    return [*given, *(["--lr", lr] if lr else []), "--out", str(out), *more]


HELD = Path(__file__).parents[1] / "held.py"
PATIENCE = 600  # seconds, after which a process hangs: on a busy machine all takes long


def start(arguments, held_at=None):
    """A command in a process of its own, for which Ctrl-C is what it is in a terminal.

    `held_at`: the step at which its runs wait, see held.py.
    """
    command = ["-m", "sgd_sai.cli"] if held_at is None else [str(HELD)]
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        env=os.environ if held_at is None else {**os.environ, "HELD_AT": str(held_at)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell would have it ignored


def wait_for_step(process, folder, step):
    """Return once a line of that step or a later one is in the metrics."""
    path = folder / METRICS
    while process.poll() is None:
        text = path.read_text() if path.exists() else ""
        if any(int(reached) >= step for reached in re.findall(r'"step": (\d+),', text)):
            return
        time.sleep(0.02)
    raise AssertionError(f"ended with {process.returncode} before step {step}: {process.stderr.read()}")
