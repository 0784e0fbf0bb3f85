"""Checkpoints that are saved by some number of ranks and loaded by another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tiny import BATCH, LATE, OPTIONS, Tiny, assert_same_outcome, one_process, outcome, train
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from world import world

from sgd_sai import UNLATCHED, SGDSaI

#: How the state is asked for; "full" is one plain file, the others are distributed checkpoints.
KINDS = {
    "plain": StateDictOptions(),
    "offloaded": StateDictOptions(cpu_offload=True),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "async": StateDictOptions(),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
    "full from rank 0": StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True),
}
#: Before the first step; while the late layer has no scale; after.
SAVED_AFTER = (0, 1, LATE + 2)
END = LATE + 4


def training() -> tuple[Tiny, SGDSaI, slice]:
    """As many ranks as there are; one rank alone trains without FSDP2."""
    model, ranks, rank = Tiny(), dist.get_world_size(), dist.get_rank()
    if ranks > 1:
        mesh = init_device_mesh("cpu", (ranks,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    each = BATCH // ranks
    return model, SGDSaI(model.parameters(), **OPTIONS), slice(rank * each, (rank + 1) * each)


def states(model: Tiny, optimizer: SGDSaI, options: StateDictOptions) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=options.full_state_dict)
        ),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def save(model: Tiny, optimizer: SGDSaI, folder: Path) -> None:
    for kind, options in KINDS.items():
        state = states(model, optimizer, options)
        if kind == "async":
            dcp.async_save(state, checkpoint_id=folder / kind).result()
        elif not options.full_state_dict:
            dcp.save(state, checkpoint_id=folder / kind)
        elif dist.get_rank() == 0:
            torch.save(state, folder / kind)
        dist.barrier()


def load(model: Tiny, optimizer: SGDSaI, folder: Path, kind: str) -> None:
    options = KINDS[kind]
    if options.full_state_dict:
        state: dict[str, Any] = {"model": {}, "optimizer": {}}
        if not options.broadcast_from_rank0 or dist.get_rank() == 0:
            state = torch.load(folder / kind, weights_only=True)
    else:
        state = states(model, optimizer, options)
        dcp.load(state, checkpoint_id=folder / kind)
    whole = StateDictOptions(
        full_state_dict=options.full_state_dict, broadcast_from_rank0=options.broadcast_from_rank0
    )
    set_model_state_dict(model, state["model"], options=whole)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def save_on_the_way(folder: Path) -> dict[Any, dict[str, Any]]:
    """What there was when it was saved, and at the end."""
    model, optimizer, share = training()
    found = {}
    for step in range(END):
        if step in SAVED_AFTER:
            path = folder / str(step)
            path.mkdir(exist_ok=True)
            save(model, optimizer, path)
            found[step] = outcome(model, optimizer)
        train(model, optimizer, [step], share)
    return {**found, "end": outcome(model, optimizer)}


def load_and_go_on(folder: Path, saved: dict[Any, dict[str, Any]], same_ranks: bool) -> None:
    for step in SAVED_AFTER:
        for kind in KINDS:
            model, optimizer, share = training()
            load(model, optimizer, folder / str(step), kind)
            assert_equal(outcome(model, optimizer), saved[step])
            late = optimizer.state[model.late.weight]
            assert (late["gsnr"] == UNLATCHED) == (step <= LATE)
            assert optimizer.param_groups[0]["lr"] == OPTIONS["lr"]
            if kind == "plain":
                train(model, optimizer, range(step, END), share)
                (assert_equal if same_ranks else assert_same_outcome)(outcome(model, optimizer), saved["end"])


def assert_equal(found: dict[str, Any], truth: dict[str, Any]) -> None:
    """Bit for bit."""
    assert (found["gsnr"], found["gsnr_max"]) == (truth["gsnr"], truth["gsnr_max"])
    for kind in ("params", "momenta"):
        assert found[kind].keys() == truth[kind].keys()
        assert all(torch.equal(found[kind][name], truth[kind][name]) for name in truth[kind])


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(4, (4, 2, 1)), (1, (4,))])
def test_saved_on_some_ranks_and_loaded_on_others(
    saved_on: int, loaded_on: tuple[int, ...], tmp_path: Path
) -> None:
    """What is loaded is what was saved; then training goes on, on as many ranks as before bit for bit."""
    saved = world(saved_on, save_on_the_way, tmp_path)[0]
    assert_same_outcome(saved["end"], one_process(steps=END))
    for ranks in loaded_on:
        world(ranks, load_and_go_on, tmp_path, saved, ranks == saved_on)


def saved_between_measuring_and_moving(folder: Path) -> None:
    model, optimizer, share = training()
    optimizer = SGDSaI(model.parameters(), measure_first=True, **OPTIONS)
    train(model, optimizer, [LATE], share)
    dcp.save(states(model, optimizer, KINDS["plain"]), checkpoint_id=folder / "between")
    train(model, optimizer, [LATE + 1], share)
    dcp.save(states(model, optimizer, KINDS["plain"]), checkpoint_id=folder / "after")
    other = SGDSaI(model.parameters(), measure_first=True, **OPTIONS)
    dcp.load(states(model, other, KINDS["plain"]), checkpoint_id=folder / "after")
    with pytest.raises(dcp.CheckpointException, match=r"optimizer.state.\w+.*momentum_buffer"):
        dcp.load(states(model, other, KINDS["plain"]), checkpoint_id=folder / "between")


def test_between_measuring_and_moving(tmp_path: Path) -> None:
    """The tutorial's variant has no momentum there, and a distributed checkpoint no way to say so."""
    world(2, saved_between_measuring_and_moving, tmp_path)
