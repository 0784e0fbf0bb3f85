"""The command line, whose runs wait at a step: a test stops or kills them there, however busy the machine is.

    HELD_AT=30 python tests/held.py compare --task cnn --jobs 2

The processes of `--jobs` wait too: each imports the file that its parent was started with.
"""

from __future__ import annotations

import os
import sys
import time

from sgd_sai.cli import main
from sgd_sai.lab.runs.training import Training
from sgd_sai.lab.runs.workers import told_to_stop


def hold(step: int) -> None:
    """From now on, a run of this process waits once the line of `step` is in its metrics.

    It goes on when the parent process has told it to stop, or is gone.
    """
    log = Training._log

    def logged(self: Training) -> None:
        log(self)
        if self.step == step:
            parent = os.getppid()
            while os.getppid() == parent and not told_to_stop():
                time.sleep(0.01)

    Training._log = logged  # type: ignore[method-assign]


if __name__ in ("__main__", "__mp_main__"):
    hold(int(os.environ["HELD_AT"]))
if __name__ == "__main__":
    sys.exit(main())
