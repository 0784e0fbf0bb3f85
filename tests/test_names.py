"""A saved state finds its parameters by name, whatever the order; names that do not fit are an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.swa_utils import AveragedModel

from sgd_sai import SGDSaI

Named = list[tuple[str, torch.Tensor]]


def net() -> nn.Module:
    """Three layers of one shape: by place, any two could be exchanged without a word."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(5, 5) for _ in range(3)))


def train(model: nn.Module, optimizer: SGDSaI, steps: range) -> None:
    for step in steps:
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        (model(torch.randn(4, 5)) * torch.randn(4, 5)).sum().backward()
        optimizer.step()


def as_given(named: Named) -> list[Any]:
    return named


def backwards(named: Named) -> list[Any]:
    return named[::-1]


def biases_first(named: Named) -> list[Any]:
    return [{"params": [of for of in named if kind in of[0]]} for kind in ("bias", "weight")]


def weights_first(named: Named) -> list[Any]:
    return biases_first(named[::-1])[::-1]


@pytest.mark.parametrize(
    ("before", "after"), [(as_given, backwards), (backwards, as_given), (biases_first, weights_first)]
)
def test_resumes_bit_for_bit_in_another_order(before: Callable[..., Any], after: Callable[..., Any]) -> None:
    model = net()
    optimizer = SGDSaI(before(list(model.named_parameters())), lr=0.3)
    train(model, optimizer, range(3))
    other = copy.deepcopy(model)
    resumed = SGDSaI(after(list(other.named_parameters())), lr=0.3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    named = [name for group in resumed.param_groups for name in group["param_names"]]
    assert [dict(other.named_parameters())[name] for name in named] == [
        param for group in resumed.param_groups for param in group["params"]
    ]
    train(model, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_the_options_of_a_group_come_with_its_parameters() -> None:
    """The group of the weights has its own lr, on whichever place it is."""
    model = net()
    groups = biases_first(list(model.named_parameters()))
    optimizer = SGDSaI([groups[0], {**groups[1], "lr": 0.7}], lr=0.3)
    train(model, optimizer, range(1))
    resumed = SGDSaI(weights_first(list(model.named_parameters())), lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["lr"] for group in resumed.param_groups] == [0.7, 0.3]


class Inner(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner  # as DDP, FSDP1 and gradient checkpointing name it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._checkpoint_wrapped_module = inner


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    Inner,
    lambda model: torch.compile(model, backend="eager"),
    AveragedModel,
    lambda model: nn.Sequential(model[0], Checkpointed(model[1]), Inner(model[2])),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("saved_wrapped", [False, True])
def test_what_wrappers_put_into_names_does_not_count(wrap: Callable[..., Any], saved_wrapped: bool) -> None:
    model = net()
    wrapped = wrap(model)
    named = [list(wrapped.named_parameters()), list(model.named_parameters())]
    assert [name for name, _ in named[0]] != [name for name, _ in named[1]]
    before, after = named if saved_wrapped else named[::-1]
    optimizer = SGDSaI(before, lr=0.3)
    for seed, (_, param) in enumerate(before):
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()
    resumed = SGDSaI(after[::-1], lr=0.3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    saved = [optimizer.state[param]["gsnr"] for _, param in before]
    assert len(set(saved)) == len(saved)
    assert [resumed.state[param]["gsnr"] for _, param in after] == saved
    assert resumed.param_groups[0]["param_names"] == [name for name, _ in after[::-1]]


def test_a_module_of_that_name_beside_its_wrapper() -> None:
    """Where names are equal without a wrapper's part, the whole names count."""
    model = nn.ModuleDict(
        {"a": nn.Linear(3, 3, bias=False), "module": nn.ModuleDict({"a": nn.Linear(3, 3, bias=False)})}
    )
    named = list(model.named_parameters())
    optimizer = SGDSaI(named)
    for seed, (_, param) in enumerate(named):
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()
    resumed = SGDSaI(named[::-1])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _, param in named:
        assert resumed.state[param]["gsnr"] == optimizer.state[param]["gsnr"]


def renamed(named: Named) -> list[Any]:
    return [(name.replace("0.", "first."), param) for name, param in named]


def regrouped(named: Named) -> list[Any]:
    return [{"params": named[:2]}, {"params": named[2:]}]


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        (
            renamed,
            as_given,
            r"the optimizer has not: first\.bias, first\.weight; it lacks: 0\.bias, 0\.weight; ",
        ),
        (as_given, lambda named: named[1:], r"the optimizer has not: 0\.weight; it lacks: none; "),
        (biases_first, regrouped, r"0\.bias, 0\.weight are one group of the optimizer, but not of the state"),
        (
            regrouped,
            biases_first,
            r"0\.bias, 1\.bias, 2\.bias are one group of the optimizer, but not of the",
        ),
        (regrouped, as_given, r"groups of \[2, 4\] parameters; the optimizer has groups of \[6\]"),
    ],
)
def test_names_that_do_not_fit(saved: Callable[..., Any], given: Callable[..., Any], message: str) -> None:
    model = net()
    optimizer = SGDSaI(saved(list(model.named_parameters())), lr=0.3)
    train(model, optimizer, range(1))
    other = SGDSaI(given(list(model.named_parameters())), lr=0.1)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.1
    assert not other.state


@pytest.mark.parametrize("nameless", ["saved", "given", "by hand"])
def test_by_place_where_a_side_has_no_names(nameless: str) -> None:
    """As torch.optim does; also the remedy that the error names, for a model whose names have changed."""
    model = net()
    named, params = renamed(list(model.named_parameters())), list(model.parameters())
    optimizer = SGDSaI(params if nameless == "saved" else named)
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    if nameless == "by hand":
        del state["param_groups"][0]["param_names"]
    other = SGDSaI(params if nameless == "given" else list(model.named_parameters()))
    other.load_state_dict(state)
    for param in params:
        assert other.state[param]["gsnr"] == optimizer.state[param]["gsnr"]
    if nameless != "given":
        assert other.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_a_distributed_checkpoint_in_another_order() -> None:
    """It matches by name itself, and hands over the names of the group in the order in which it was saved."""
    model = net()
    optimizer = SGDSaI(list(model.named_parameters()), lr=0.3)
    train(model, optimizer, range(2))
    other = copy.deepcopy(model)
    resumed = SGDSaI(list(other.named_parameters())[::-1], lr=0.3)
    set_optimizer_state_dict(other, resumed, copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    assert resumed.param_groups[0]["param_names"] == [name for name, _ in other.named_parameters()][::-1]
    train(model, optimizer, range(2, 4))
    train(other, resumed, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("names", [[1, 2, 3, 4, 5, 6], [("a", i) for i in range(6)], None], ids=str)
def test_names_that_are_no_strings(names: Any) -> None:
    model = net()
    params = list(model.parameters())
    optimizer = SGDSaI(params if names is None else list(zip(names, params, strict=True)))
    train(model, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    if names is None:
        state["param_groups"][0]["param_names"] = None
    optimizer.load_state_dict(state)
