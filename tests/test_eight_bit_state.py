"""The state of a momentum in 8 bits: the shape of its scales, what was saved before, and what was cast."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from optimizer_info import give_gradients
from sgd_sai import SGDSaI
from sgd_sai.quantized import WIDE, Momentum8

#: The shape of a parameter, its `split`, and the shape of its scales: that of the codes but for the last dim,
#: where 256 divides it; else one dim.
SHAPES: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = [
    ((20, 512), 1, (20, 2)),
    ((20, 512), 4, (20, 2)),
    ((4, 6, 256), 2, (4, 6, 1)),
    ((8192,), 1, (32,)),
    ((8192,), 2, (32,)),
    ((90, 60), 1, (22,)),
    ((90, 60), 3, (24,)),
]


class Model(nn.Module):
    """A parameter of each shape, one for which 8 bits are too few, and one of complex numbers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.each = nn.ParameterList(torch.randn(shape) for shape, _, _ in SHAPES)
        self.small = nn.Parameter(torch.randn(10, 256))
        self.pairs = nn.Parameter(torch.randn(60, 50, dtype=torch.complex64))


def optimizer_of(model: Model, **options: Any) -> SGDSaI:
    groups: list[dict[str, Any]] = [
        {"params": [p], "split": split} for p, (_, split, _) in zip(model.each, SHAPES, strict=True)
    ]
    groups.append({"params": [model.small, model.pairs]})
    return SGDSaI(groups, **{"lr": 0.1, "state_dtype": "8bit", **options})


def train(model: nn.Module, optimizer: SGDSaI, steps: range) -> None:
    for step in steps:
        give_gradients(list(model.parameters()), step)
        optimizer.step()


def assert_same(model: Model, optimizer: SGDSaI, other: Model, of_other: SGDSaI) -> None:
    """Bit for bit, and the tensors of the states in the same shapes."""
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        state, found = optimizer.state[p], of_other.state[q]
        assert state.keys() == found.keys()
        assert all(
            torch.equal(value, found[key]) for key, value in state.items() if isinstance(value, Tensor)
        )


def with_flat_scales(state: dict[str, Any]) -> dict[str, Any]:
    """A saved state as it was before scales had a shape."""
    for entries in state["state"].values():
        if "momentum_absmax" in entries:
            entries["momentum_absmax"] = entries["momentum_absmax"].flatten()
    for group in state["param_groups"]:
        group["momentum_order"] = "index"
    return state


def test_the_shape_of_the_scales() -> None:
    model = Model()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(1))
    found = [tuple(optimizer.state[p]["momentum_absmax"].shape) for p in model.each]
    assert found == [shape for _, _, shape in SHAPES]
    assert tuple(optimizer.state[model.pairs]["momentum_absmax"].shape) == (-(-2 * 60 * 50 // 256),)
    assert "momentum_absmax" not in optimizer.state[model.small]


def through_a_saved_state(model: Model, optimizer: SGDSaI, _: Path) -> tuple[Model, SGDSaI]:
    other = Model(1)
    other.load_state_dict(model.state_dict())
    resumed = optimizer_of(other)
    resumed.load_state_dict(with_flat_scales(copy.deepcopy(optimizer.state_dict())))
    return other, resumed


def through_a_pickle(model: Model, optimizer: SGDSaI, _: Path) -> tuple[Model, SGDSaI]:
    model, optimizer = copy.deepcopy((model, optimizer))
    for state in optimizer.state.values():
        if "momentum_absmax" in state:
            state["momentum_absmax"] = state["momentum_absmax"].flatten()
    return pickle.loads(pickle.dumps((model, optimizer)))


def through_a_distributed_checkpoint(model: Model, optimizer: SGDSaI, folder: Path) -> tuple[Model, SGDSaI]:
    """Torch finds that sizes differ, and says how to read all of it."""
    other = Model(1)
    other.load_state_dict(model.state_dict())
    resumed = optimizer_of(other)
    saved = with_flat_scales(copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    dcp.save(saved, checkpoint_id=folder / "saved", no_dist=True)
    with pytest.raises(dcp.api.CheckpointException, match=r"Size mismatch .*momentum_absmax"):
        dcp.load(get_optimizer_state_dict(other, resumed), checkpoint_id=folder / "saved", no_dist=True)
    dcp_to_torch_save(folder / "saved", folder / "state.pt")
    set_optimizer_state_dict(other, resumed, torch.load(folder / "state.pt", weights_only=True))
    return other, resumed


@pytest.mark.parametrize(
    "way",
    [through_a_saved_state, through_a_pickle, through_a_distributed_checkpoint],
    ids=lambda f: f.__name__,
)
def test_scales_that_had_one_dim(
    way: Callable[[Model, SGDSaI, Path], tuple[Model, SGDSaI]], tmp_path: Path
) -> None:
    model = Model()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(2))
    other, resumed = way(model, optimizer, tmp_path)
    assert_same(model, optimizer, other, resumed)
    train(model, optimizer, range(2, 4))
    train(other, resumed, range(2, 4))
    assert_same(model, optimizer, other, resumed)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16], ids=str)
def test_codes_that_were_cast_are_refused(
    state_dtype: torch.dtype | None, flat: bool, tmp_path: Path
) -> None:
    """A distributed checkpoint is loaded into the dtypes that are there: codes would be read as numbers."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other = nn.Linear(512, 20), nn.Linear(512, 20)
    optimizer = SGDSaI(model.parameters(), state_dtype="8bit")
    resumed = SGDSaI(other.parameters(), state_dtype=state_dtype)
    train(model, optimizer, range(2))
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    state = get_optimizer_state_dict(other, resumed, options=options)
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(ValueError, match="lacks 'momentum_absmax', which tells codes of 8 bits from numbers"):
        set_optimizer_state_dict(other, resumed, state, options=options)


def test_a_wider_momentum_is_kept_and_saved_as_one() -> None:
    """Given by the user, in place of one in 8 bits or from the start."""
    model = Model()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(1))
    generator = torch.Generator().manual_seed(3)
    for p in model.each:
        optimizer.state[p]["momentum_buffer"] = torch.randn(p.shape, generator=generator)
    del optimizer.state[model.each[0]]["momentum_absmax"]  # of the others it stays, and means nothing
    saved = copy.deepcopy(optimizer.state_dict())
    for number, (_, _, shape) in enumerate(SHAPES):
        assert torch.equal(saved["state"][number]["momentum_absmax"], torch.full(shape, WIDE))
    other = copy.deepcopy(model)
    resumed = optimizer_of(other)
    resumed.load_state_dict(saved)
    for p, q in zip(model.each, other.each, strict=True):
        assert torch.equal(resumed.state[q]["momentum_buffer"], optimizer.state[p]["momentum_buffer"])
    train(model, optimizer, range(1, 3))
    train(other, resumed, range(1, 3))
    assert {optimizer.state[p]["momentum_buffer"].dtype for p in model.each} == {torch.float32}
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    state, group = resumed.state[other.each[0]], resumed.param_groups[0]
    kept = state["momentum_buffer"].clone()
    group["split"] = 2  # its scales are measured anew; a momentum that has none beside it stays
    resumed.state_dict()
    assert torch.equal(state["momentum_buffer"], kept)


@pytest.mark.parametrize("keys", [("momentum_buffer", "momentum_absmax"), ("momentum_absmax",)], ids=str)
def test_scales_that_were_laid_out_anew_are_the_same(keys: tuple[str, ...]) -> None:
    """A tool has brought tensors of four dims into channels_last."""

    def made() -> tuple[nn.Parameter, SGDSaI]:
        param = nn.Parameter(torch.randn(4, 3, 2, 768, generator=torch.Generator().manual_seed(0)))
        optimizer = SGDSaI([param], lr=0.1, state_dtype="8bit")
        give_gradients([param], 0)
        optimizer.step()
        return param, optimizer

    (param, optimizer), (other, laid_out) = made(), made()
    state = laid_out.state[other]
    for key in keys:
        state[key] = state[key].contiguous(memory_format=torch.channels_last)
        assert not state[key].is_contiguous()
    loaded = SGDSaI([third := nn.Parameter(other.detach().clone())], lr=0.1, state_dtype="8bit")
    loaded.load_state_dict(copy.deepcopy(laid_out.state_dict()))
    for of, by in ((param, optimizer), (other, laid_out), (third, loaded)):
        give_gradients([of], 1)
        by.step()
    expected = Momentum8(*(optimizer.state[param][key] for key in ("momentum_buffer", "momentum_absmax")))
    for of, by in ((other, laid_out), (third, loaded)):
        assert torch.equal(of, param)
        state = by.state[of]
        assert torch.equal(
            Momentum8(state["momentum_buffer"], state["momentum_absmax"]).read(), expected.read()
        )


def test_a_mark_may_be_saved_as_the_number_that_it_is() -> None:
    """As by a tool that saves `optimizer.state` as it lies there."""
    param = nn.Parameter(torch.ones(64, 64))
    optimizer = SGDSaI([param], state_dtype="8bit", scale="sqrt_d", normalize=1.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    saved = optimizer.state_dict()
    momentum = torch.rand(64, 64)
    saved["state"][0].update(momentum_buffer=momentum, momentum_absmax=-1.0)
    optimizer.load_state_dict(saved)
    assert torch.equal(optimizer.state[param]["momentum_buffer"], momentum)
