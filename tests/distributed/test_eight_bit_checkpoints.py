"""Checkpoints of a momentum in 8 bits, saved by some number of ranks and loaded by another."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_checkpoint import KINDS, load, save
from tiny import whole
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from world import world

from sgd_sai import SGDSaI
from sgd_sai.quantized import read_whole

#: On up to how many ranks the momentum of a layer has 8 bits, of those tried; on more it has 16.
RANKS = {"rows.weight": 4, "replicas.weight": 4, "columns.weight": 2, "convolution.weight": 1, "rows.bias": 0}
#: The step after which all is saved, and the last.
SAVED, END = 3, 6
#: Of each parameter, with scales of its own: of the convolution they have no whole number of blocks.
PARTS = 5


class Model(nn.Module):
    """Layers of 5 rows, to be cut, and to be cut and replicated; of columns to be cut; and a convolution."""

    def __init__(self, *, rows_alone: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Linear(1024, 5)
        if not rows_alone:
            self.replicas = nn.Linear(1024, 5, bias=False)
            self.columns = nn.Linear(512, 20, bias=False)
            self.convolution = nn.Conv2d(15, 15, 5, bias=False)


def made(rows_alone: bool) -> tuple[Model, SGDSaI]:
    """Of one rank alone the parameters are plain tensors."""
    model, ranks = Model(rows_alone=rows_alone), dist.get_world_size()
    if ranks > 1:
        mesh = init_device_mesh("cpu", (ranks,))
        fully_shard(model.rows, mesh=mesh)
        if not rows_alone:
            fully_shard(model.convolution, mesh=mesh)
            replicas = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("replicate", "shard"))
            fully_shard(model.replicas, mesh=replicas)
            parallelize_module(model, mesh, {"columns": RowwiseParallel()})
    options = {"lr": 0.1, "scale": "sqrt_d", "state_dtype": "8bit"}  # √d is exact on any ranks
    return model, SGDSaI(model.named_parameters(), split=PARTS, **options)


def train(optimizer: SGDSaI, steps: range) -> None:
    """On gradients that are equal, bit for bit, on any number of ranks."""
    for step in steps:
        for number, p in enumerate(optimizer.param_groups[0]["params"]):
            grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + number))
            p.grad = (
                distribute_tensor(grad, p.device_mesh, p.placements) if hasattr(p, "placements") else grad
            )
        optimizer.step()


def outcome(optimizer: SGDSaI) -> dict[str, dict[str, Tensor]]:
    [group] = optimizer.param_groups
    named = dict(zip(group["param_names"], group["params"], strict=True))
    kept = {
        name: {key: whole(value) for key, value in optimizer.state[p].items() if isinstance(value, Tensor)}
        for name, p in named.items()
    }
    return {name: {"param": whole(p), **kept[name]} for name, p in named.items()}


def saved_and_trained_on(folder: Path) -> dict[bool, Any]:
    """The outcomes when all kinds of checkpoints were saved, and at the end."""
    found = {}
    for rows_alone in (True, False):
        model, optimizer = made(rows_alone)
        train(optimizer, range(SAVED))
        path = folder / str(rows_alone)
        path.mkdir(exist_ok=True)
        save(model, optimizer, path, step=0)
        saved = outcome(optimizer)
        for name, tensors in saved.items():
            narrow = RANKS[name] >= dist.get_world_size()
            assert (tensors["momentum_buffer"].dtype == torch.int8) == narrow, name
            assert ("momentum_absmax" in tensors) == narrow, name  # a mark beside others is no tensor
        copies = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
        train(optimizer, range(SAVED, END))
        found[rows_alone] = [saved, outcome(optimizer)]
        for other in copies:
            train(other, range(SAVED, END))
            assert_equal(outcome(other), found[rows_alone][1], set(saved))
    return found


def loaded_and_trained_on(folder: Path, saved_on: int, truths: dict[bool, Any]) -> None:
    ranks = dist.get_world_size()
    widened = any(ranks <= of < saved_on for of in RANKS.values())
    if saved_on == 1:
        saved_otherwise(folder, *truths[True])
    for rows_alone, (saved, end) in truths.items():
        for kind in KINDS:
            model, optimizer = made(rows_alone)
            path = folder / str(rows_alone)
            keeps = KINDS[kind].full_state_dict and (ranks == 1 or not KINDS[kind].broadcast_from_rank0)
            if widened and not rows_alone and not keeps:
                with pytest.raises(ValueError, match=r"had more than 8 bits .* has cast it to int8"):
                    load(model, optimizer, path, kind)
                continue
            if kind == "flat":  # after a plain one, which has left the keys by which it is loaded
                load(model, optimizer, path, "plain")
            load(model, optimizer, path, kind)
            assert_goes_on(optimizer, saved, end)
        if widened and ranks == 1:
            dcp_to_torch_save(folder / "False" / "plain", folder / "file.pt")
            state = torch.load(folder / "file.pt", weights_only=True)
            assert_goes_on(load_whole(state, rows_alone=False), *truths[False])


def load_whole(state: dict[str, Any], rows_alone: bool) -> SGDSaI:
    """A new optimizer that goes on from a state that every rank has."""
    model, optimizer = made(rows_alone)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    return optimizer


def saved_otherwise(folder: Path, saved: dict[str, Any], end: dict[str, Any]) -> None:
    """When all scales had one dim; and with scales beside what is no momentum in 8 bits."""
    state = torch.load(folder / "True" / "full", weights_only=True)
    rows = state["optimizer"]["state"]["rows.weight"]
    rows["momentum_absmax"] = rows["momentum_absmax"].flatten()
    state["optimizer"]["param_groups"][0]["momentum_order"] = "index"
    assert_goes_on(load_whole(state, rows_alone=True), saved, end)
    state = torch.load(folder / "False" / "full", weights_only=True)
    state["optimizer"]["state"]["convolution.weight"]["momentum_buffer"] = torch.randn(15, 15, 5, 5)
    with pytest.raises(ValueError, match="holds 'momentum_absmax', but no momentum in 8 bits"):
        load_whole(state, rows_alone=False)


def assert_goes_on(optimizer: SGDSaI, saved: dict[str, Any], end: dict[str, Any]) -> None:
    """What was loaded is what was saved, and training goes on, bit for bit, but where 8 bits became 16.

    Other numbers of ranks cut columns into others, whose momenta are rounded by other random bits.
    """
    found = outcome(optimizer)
    alike = {name for name in saved if saved[name].keys() == found[name].keys()}
    for name in saved.keys() - alike:
        codes, absmax = saved[name]["momentum_buffer"], saved[name]["momentum_absmax"]
        meant = read_whole(codes, absmax, PARTS, is_complex=False)
        assert torch.equal(found[name]["momentum_buffer"], meant.bfloat16()), name
        assert torch.equal(found[name]["param"], saved[name]["param"]), name
    assert_equal(found, saved, alike)
    train(optimizer, range(SAVED, END))
    found = outcome(optimizer)
    cut_in_columns = alike & {"columns.weight"}
    assert_equal(found, end, alike - cut_in_columns)
    for name in cut_in_columns:
        before, after, other = (of[name]["param"] for of in (saved, end, found))
        assert (other - after).abs().max() < 0.1 * (after - before).abs().max()


def assert_equal(found: dict[str, Any], truth: dict[str, Any], names: set[str]) -> None:
    assert "rows.weight" in names
    for name in names:
        assert found[name].keys() == truth[name].keys(), name
        for key, tensor in truth[name].items():
            assert found[name][key].dtype == tensor.dtype, (name, key)
            assert torch.equal(found[name][key], tensor), (name, key)


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(1, (2, 4)), (2, (1, 4)), (4, (1, 2))])
def test_saved_on_some_ranks_and_loaded_on_others(
    saved_on: int, loaded_on: tuple[int, ...], tmp_path: Path
) -> None:
    truths = world(saved_on, saved_and_trained_on, tmp_path)[0]
    for ranks in loaded_on:
        world(ranks, loaded_and_trained_on, tmp_path, saved_on, truths)
