"""Models that change under the optimizer: other dtypes, resized, frozen and unfrozen parameters; a GAN."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from optimizer_info import WAYS, give_gradients
from sgd_sai import UNLATCHED, SGDSaI


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 100), nn.Tanh(), nn.Linear(100, 90), nn.LayerNorm(90))


@pytest.fixture(params=[False, True], ids=["in place", "swapped"])
def conversion(request: pytest.FixtureRequest) -> Iterator[None]:
    """The two ways in which `module.to` converts parameters; both keep the parameters that it has."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(request.param)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


PLAIN = ["for-loop", "foreach", "default"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"state_dtype": "8bit"},
    {"state_dtype": torch.bfloat16, "weight_decay": 0.1},
    {"momentum": 0.0},
]


@pytest.mark.usefixtures("conversion")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", PLAIN)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_another_dtype_after_some_steps(
    before: torch.dtype, after: torch.dtype, way: str, options: dict[str, Any]
) -> None:
    """The momentum stays as it is; from then on a step is that of an optimizer which loaded this state."""
    model = net().to(before)
    optimizer = SGDSaI(model.named_parameters(), lr=0.1, **options, **WAYS[way])
    for step in range(3):
        give_gradients(list(model.parameters()), step)
        optimizer.step()
    optimizer.zero_grad()
    model.to(after)
    params = list(model.parameters())
    assert all(p is q for p, q in zip(optimizer.param_groups[0]["params"], params, strict=True))
    kept = {
        key: type(of) if key.startswith("gsnr") else of.dtype
        for key, of in optimizer.state[params[0]].items()
    }
    loading = copy.deepcopy(model)
    loaded = SGDSaI(loading.named_parameters(), lr=0.1, **options, **WAYS["for-loop"])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        give_gradients(params, step)
        give_gradients(list(loading.parameters()), step)
        optimizer.step()
        loaded.step()
    assert kept == {
        key: type(of) if key.startswith("gsnr") else of.dtype
        for key, of in optimizer.state[params[0]].items()
    }
    for p, q in zip(params, loading.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_compensation_begins_when_the_model_becomes_narrow() -> None:
    model = net()
    optimizer = SGDSaI(model.parameters(), lr=0.1, rounding="kahan")
    for step, dtype in enumerate([torch.float32, torch.bfloat16, torch.bfloat16]):
        model.to(dtype)
        give_gradients(list(model.parameters()), step)
        optimizer.step()
    for param in model.parameters():
        assert optimizer.state[param]["compensation"].dtype == torch.int16
        assert optimizer.state[param]["compensation"].any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", PLAIN)
@pytest.mark.parametrize("shape", [(110, 90), (100, 80), (90, 100)], ids=str)
@pytest.mark.parametrize("index", [1, 3], ids=["large", "small"])
def test_a_parameter_that_was_resized(
    index: int, shape: tuple[int, ...], way: str, options: dict[str, Any], threads: int
) -> None:
    """An error that names it, not a write beyond the end of its momentum; then what the error advises."""
    if index == 3:
        shape = tuple(size // 10 for size in shape)
    params = [nn.Parameter(torch.randn(of)) for of in [(7, 3), (100, 90), (5,), (10, 9)]]
    names = ["a", "embedding", "b", "head"]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        optimizer = SGDSaI(list(zip(names, params, strict=True)), lr=0.1, **options, **WAYS[way])
        give_gradients(params, 0)
        optimizer.step()
        optimizer.zero_grad()
        params[index].data = torch.randn(shape)
        give_gradients(params, 1)
        if optimizer.defaults["momentum"] == 0:
            optimizer.step()  # there is nothing that could be too small
            return
        with pytest.raises(ValueError, match=rf"parameter '{names[index]}' has shape .*momentum_buffer"):
            optimizer.step()
        del optimizer.state[params[index]]
        give_gradients(params, 2)
        optimizer.step()
        assert optimizer.state[params[index]]["momentum_buffer"].shape == shape
        assert optimizer.state[params[index]]["gsnr"] != UNLATCHED
    finally:
        torch.set_num_threads(before)


def test_a_gradient_of_another_shape() -> None:
    """It was computed before the parameter was resized."""
    param = nn.Parameter(torch.randn(100, 90))
    optimizer = SGDSaI([("embedding", param), ("bias", nn.Parameter(torch.ones(3)))], lr=0.1, momentum=0.0)
    give_gradients(optimizer.param_groups[0]["params"], 0)
    optimizer.step()
    param.data = torch.randn(200, 90)
    with pytest.raises(
        ValueError, match=r"parameter 'embedding' has shape \(200, 90\), its gradient \(100, 90\)"
    ):
        optimizer.step()


def test_two_models_that_train_against_each_other() -> None:
    """A GAN: the generator's backward also fills the gradients of the other, which zero_grad throws away."""
    torch.manual_seed(0)
    generator, judge = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    twins = copy.deepcopy((generator, judge))
    finals = []
    for g, d in ((generator, judge), twins):
        alone = g is not generator  # the twins hold no gradients that a step does not use
        of_g, of_d = SGDSaI(g.parameters(), lr=0.1), SGDSaI(d.parameters(), lr=0.1)
        for step in range(4):
            torch.manual_seed(100 + step)
            noise, real = torch.randn(5, 4), torch.randn(5, 8)
            of_d.zero_grad()
            (softplus(d(g(noise).detach())) + softplus(-d(real))).mean().backward()
            of_d.step()
            of_g.zero_grad()
            if alone:
                d.requires_grad_(False)
            softplus(-d(g(noise))).mean().backward()
            d.requires_grad_(True)
            of_g.step()
        finals.append([*g.parameters(), *d.parameters()])
        gsnr = {optimizer.param_groups[0]["gsnr_max"] for optimizer in (of_g, of_d)}
        assert len(gsnr) == 2
    assert all(torch.equal(p, q) for p, q in zip(*finals, strict=True))


@pytest.mark.parametrize("named", [False, True])
def test_layers_that_are_frozen_and_unfrozen(named: bool) -> None:
    """Frozen, a layer keeps its scale and its momentum, also in a saved state; a new one latches later."""

    def made() -> tuple[nn.Module, SGDSaI]:
        model = net()
        return model, SGDSaI(model.named_parameters() if named else model.parameters(), lr=0.1)

    def learn(model: nn.Module, optimizer: SGDSaI, step: int) -> None:
        for number, layer in enumerate((model[0], model[2], model[3])):
            layer.requires_grad_(number in TRAINED[step])
        optimizer.zero_grad()
        torch.manual_seed(50 + step)
        model(torch.randn(4, 6)).pow(3).mean().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            optimizer.step()

    model, optimizer = made()
    for step in range(len(TRAINED)):
        other, resumed = made()
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        for layer, of in zip(model, other, strict=True):
            of.requires_grad_(all(param.requires_grad for param in layer.parameters()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        frozen = [p.detach().clone() for p in model.parameters()]
        for of in ((model, optimizer), (other, resumed)):
            learn(*of, step)
        for p, q, b in zip(model.parameters(), other.parameters(), frozen, strict=True):
            assert torch.equal(p, q)
            assert p.requires_grad or torch.equal(p, b)
    assert all(optimizer.state[param]["gsnr"] != UNLATCHED for param in model.parameters())


#: Which layers are trained in each step.
TRAINED = [{2}, {2}, {1, 2}, {1}, {0, 1}, {0, 1, 2}, {0, 2}]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rows_that_the_split_no_longer_divides(momentum: float) -> None:
    """The last ones would never move. The same when a state with another split is loaded."""
    param = nn.Parameter(torch.randn(4, 3))
    optimizer = SGDSaI([{"params": [("qkv", param)], "split": 2}], lr=0.1, momentum=momentum)
    give_gradients([param], 0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    param.grad = None
    param.data = torch.randn(5, 3)
    give_gradients([param], 1)
    with pytest.raises(
        ValueError, match="split: given 2 for parameter 'qkv', whose dim 0 it does not divide"
    ):
        optimizer.step()
    if momentum == 0:
        other = SGDSaI([("qkv", nn.Parameter(torch.randn(5, 3)))], lr=0.1, momentum=momentum)
        with pytest.raises(
            ValueError, match="state_dict: parameter 'qkv': split: given 2 for it, whose dim 0"
        ):
            other.load_state_dict(state)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", PLAIN)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_that_would_broadcast(way: str, momentum: float, threads: int) -> None:
    param = nn.Parameter(torch.randn(1, 6))
    options = {"lr": 0.1, "momentum": momentum, **WAYS[way]}
    optimizer = SGDSaI([("w", param), ("b", nn.Parameter(torch.ones(3)))], **options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        give_gradients(optimizer.param_groups[0]["params"], 0)
        optimizer.step()
        param.data = torch.randn(3, 6)
        with pytest.raises(ValueError, match=r"parameter 'w' has shape \(3, 6\), its gradient \(1, 6\)"):
            optimizer.step()
    finally:
        torch.set_num_threads(before)
