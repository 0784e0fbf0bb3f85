"""Training that is killed at random moments, also while it saves, ends where it would have ended.

`SGD_SAI_KILLS=20 pytest -n 0 tests/distributed/test_killed.py` kills twenty times; the suite three times.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from test_checkpoint import KINDS, assert_equal, states, training
from tiny import outcome, train
from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict
from world import start, world

KILLS = int(os.environ.get("SGD_SAI_KILLS", "3"))
EACH = 8  # steps, of which at least one is left after a kill
END = EACH * KILLS
RANKS = 2


def last_saved(folder: Path) -> int:
    """The step of the last complete checkpoint: those that are not have another name."""
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)


def train_from_the_last_checkpoint(folder: Path, end: int = END) -> dict[str, Any]:
    model, optimizer, share = training()
    first = last_saved(folder)
    if first:
        state = states(model, optimizer, KINDS["plain"])
        dcp.load(state, checkpoint_id=folder / str(first))
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
    for step in range(first, end):
        train(model, optimizer, [step], share)
        aside = folder / f"{step + 1}.saving"
        dcp.save(states(model, optimizer, KINDS["plain"]), checkpoint_id=aside)
        dist.barrier()
        if dist.get_rank() == 0:
            aside.rename(folder / str(step + 1))
    return outcome(model, optimizer)


def train_until_killed(folder: Path, end: int) -> None:
    """It waits at `end`, so that it is there to be killed, however late."""
    train_from_the_last_checkpoint(folder, end)
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    truth = world(RANKS, train_from_the_last_checkpoint, undisturbed)[0]

    moments = random.Random(0)
    for kill in range(KILLS):
        returned = tmp_path / f"kill {kill}"
        returned.mkdir()
        begun_at = last_saved(disturbed)
        ranks = start(RANKS, str(returned), train_until_killed, disturbed, EACH * (kill + 1) - 1)
        wanted = begun_at + moments.randint(1, 2)
        while last_saved(disturbed) < wanted:
            assert not list(returned.glob("*.error")), [p.read_text() for p in returned.glob("*.error")]
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))
        assert all(process.is_alive() for process in ranks)
        for process in ranks:
            process.kill()
        for process in ranks:
            process.join()
        assert begun_at < last_saved(disturbed) < END

    for found in world(RANKS, train_from_the_last_checkpoint, disturbed):
        assert_equal(found, truth)
