"""Several optimizers of one model: a warning where each would divide by its own, and one number for all."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward

from sgd_sai import SGDSaI
from sgd_sai.diagnostics import measure_blocks

pytestmark = pytest.mark.filterwarnings("default:.*SGDSaI:UserWarning")
ONE_BLOCK = "holds one block"
INSIDE = "steps inside backward"
BESIDE = "when another SGDSaI took its own first step"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))


def backward(model: nn.Module, step: int) -> None:
    torch.manual_seed(100 + step)
    model(torch.randn(8, 6)).square().mean().backward()


#: A way to train with several optimizers: what must be called after each backward.
Way = Callable[..., Callable[[], None]]


def in_backward_of_torch(model: nn.Module, **options: Any) -> Callable[[], None]:
    """torch's own: one optimizer for each parameter, which steps in a hook and frees the gradient."""
    _apply_optimizer_in_backward(SGDSaI, model.parameters(), options)
    return lambda: None


def one_for_each_parameter(model: nn.Module, **options: Any) -> Callable[[], None]:
    """As torchtune and diffusion-pipe do it."""
    optimizers = {param: SGDSaI([param], **options) for param in model.parameters()}

    def hook(param: torch.Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(hook)
    return lambda: None


def groups_in_backward(model: nn.Module, **options: Any) -> Callable[[], None]:
    """As kohya's fused optimizer groups: one for some parameters, which steps when all have a gradient."""
    params = list(model.parameters())
    for members in (params[:2], params[2:]):
        optimizer, arrived = SGDSaI(members, **options), []

        def hook(param: torch.Tensor, optimizer: Any = optimizer, arrived: Any = arrived) -> None:
            arrived.append(param)
            if len(arrived) == len(optimizer.param_groups[0]["params"]):
                optimizer.step()
                optimizer.zero_grad()
                arrived.clear()

        for param in members:
            param.register_post_accumulate_grad_hook(hook)
    return lambda: None


def parts_of_a_pipeline(model: nn.Module, **options: Any) -> Callable[[], None]:
    """As torchtitan: one for each part of the model that a rank holds, one after the other."""
    params = list(model.parameters())
    optimizers = [SGDSaI(members, **options) for members in (params[:2], params[2:])]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()

    return step


WAYS = {
    in_backward_of_torch: ONE_BLOCK,
    one_for_each_parameter: ONE_BLOCK,
    groups_in_backward: INSIDE,
    parts_of_a_pipeline: BESIDE,
}


def trained(way: Way, **options: Any) -> list[torch.Tensor]:
    model = net()
    after_backward = way(model, **options)
    for step in range(3):
        backward(model, step)
        after_backward()
    return [param.detach() for param in model.parameters()]


def whole(model: nn.Module, **options: Any) -> Callable[[], None]:
    """One optimizer, as it should be."""
    optimizer = SGDSaI(model.parameters(), **options)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


@pytest.mark.parametrize("normalize", [True, "rms"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_dividing_by_its_own_is_another_method_and_warns(way: Way, normalize: Any) -> None:
    with pytest.warns(UserWarning, match=WAYS[way]):
        apart = trained(way, lr=0.3, normalize=normalize)
    together = trained(whole, lr=0.3, normalize=normalize)
    assert max((p - q).abs().max().item() for p, q in zip(apart, together, strict=True)) > 1e-3


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("normalize", "key"), [(True, "gsnr_max"), ("rms", "gsnr_rms")])
def test_one_number_for_all_is_one_optimizer_bit_for_bit(way: Way, normalize: Any, key: str) -> None:
    model = net()
    backward(model, 0)
    number = measure_blocks(model).normalizers[key]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apart = trained(way, lr=0.3, weight_decay=0.01, normalize=number)
    together = trained(whole, lr=0.3, weight_decay=0.01, normalize=normalize)
    assert all(torch.equal(p, q) for p, q in zip(apart, together, strict=True))


def test_the_warning_comes_once() -> None:
    """Not once for each of the optimizers: Python shows equal warnings of one line once."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        trained(in_backward_of_torch, lr=0.3)
    assert [ONE_BLOCK in str(warning.message) for warning in shown] == [True]


def two_models(model: nn.Module, other: nn.Module) -> None:
    """Turns, as in a GAN: backward and step of one, then of the other."""
    pairs = [(of, SGDSaI(of.parameters(), lr=0.1)) for of in (model, other)]
    for step in range(2):
        for of, optimizer in pairs:
            optimizer.zero_grad()
            backward(of, step)
            optimizer.step()


def copies_beside_each_other(model: nn.Module, _: nn.Module) -> None:
    """The same model twice, to compare options: both backwards, then both steps."""
    pairs = [(of, SGDSaI(of.parameters(), lr=0.1)) for of in (model, copy.deepcopy(model))]
    for of, _ in pairs:
        backward(of, 0)
    for _, optimizer in pairs:
        optimizer.step()


def one_that_is_left_over(model: nn.Module, other: nn.Module) -> None:
    """An optimizer of a cell of a notebook that was run before, and has stopped with gradients."""
    left = SGDSaI(other.parameters(), lr=0.1)
    backward(other, 0)
    two_models(model, net())
    assert left.param_groups


def a_raw_rate(model: nn.Module, other: nn.Module) -> None:
    """No divisor, nothing to share."""
    trained(in_backward_of_torch, lr=1e-3, normalize=False)


@pytest.mark.parametrize(
    "use", [two_models, copies_beside_each_other, one_that_is_left_over, a_raw_rate], ids=lambda f: f.__name__
)
def test_what_is_no_part_of_a_model_does_not_warn(use: Callable[..., None]) -> None:
    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(net(), other)


def test_optimizers_can_be_freed() -> None:
    """That all optimizers of a process are known keeps none of them alive."""

    def used() -> list[weakref.ref[Any]]:
        model = net()
        optimizers = [SGDSaI(model.parameters(), lr=0.1)]
        optimizers.append(copy.deepcopy(optimizers[0]))
        backward(model, 0)
        optimizers[0].step()
        return [weakref.ref(optimizer) for optimizer in optimizers]

    left = used()
    gc.collect()
    assert [of() for of in left] == [None, None]


def test_threads_that_make_optimizers_meanwhile() -> None:
    """As trials of a search do it: none disturbs another's first step, or counts as a part of its model."""
    ready, errors = threading.Barrier(8), []

    def trial(seed: int) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 3 + seed), nn.Linear(3 + seed, 2))
        try:
            for _ in range(5):
                optimizer = SGDSaI(model.parameters(), lr=0.1)
                model(torch.randn(4, 6)).square().mean().backward()
                ready.wait(60)
                optimizer.step()
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            threads = [threading.Thread(target=trial, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
