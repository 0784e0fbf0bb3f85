"""Momentum in 8 bits of tensors that are not contiguous: its blocks follow the index of an element."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optimizer_info import WAYS, Watch, give_gradients
from sgd_sai import SGDSaI
from sgd_sai.quantized import BLOCK, Momentum8

Order = Callable[[Tensor], Tensor]


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def channels_last_3d(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last_3d)


def transposed(t: Tensor) -> Tensor:
    return t.mT.contiguous().mT


#: Shapes and orders. Those that are cut into pieces: whole rows of a multiple of 256 elements, rows of which
#: no such number fits into a piece, and rows that are longer than a piece.
TENSORS: dict[str, tuple[tuple[int, ...], Order]] = {
    "convolution": ((24, 10, 5, 5), channels_last),
    "3-d convolution": ((6, 8, 5, 5, 5), channels_last_3d),
    "linear": ((90, 70), transposed),
    "convolution, pieces": ((70, 37, 11, 11), channels_last),
    "linear, pieces": ((1100, 300), transposed),
    "experts, pieces": ((2, 1000, 301), transposed),
}
PRECISIONS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "stochastic": (torch.bfloat16, {"rounding": "stochastic"}),
    "kahan": (torch.bfloat16, {"rounding": "kahan"}),
    "parts": (torch.bfloat16, {"rounding": "stochastic", "split": 2}),
}
tensors = pytest.mark.parametrize(("shape", "order"), [*TENSORS.values()], ids=[*TENSORS])
precisions = pytest.mark.parametrize(("dtype", "options"), [*PRECISIONS.values()], ids=[*PRECISIONS])


def parameter(shape: tuple[int, ...], order: Order, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(order(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)))


def optimizer_of(param: nn.Parameter, **options: Any) -> SGDSaI:
    return SGDSaI([param], lr=0.1, weight_decay=0.1, state_dtype="8bit", **options)


def train(param: nn.Parameter, optimizer: SGDSaI, steps: range, order: Order = Tensor.contiguous) -> None:
    for step in steps:
        give_gradients([param], step)
        assert param.grad is not None
        param.grad = order(param.grad)
        optimizer.step()


def momentum_of(optimizer: SGDSaI, param: nn.Parameter) -> Tensor:
    state = optimizer.state[param]
    return Momentum8(state["momentum_buffer"], state["momentum_absmax"]).read()


def assert_same(one: SGDSaI, other: SGDSaI) -> None:
    """Parameters and states are equal bit for bit."""
    for p, q in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
        assert set(one.state[p]) == set(other.state[q])
        for key, kept in one.state[p].items():
            assert (
                torch.equal(kept, other.state[q][key])
                if isinstance(kept, Tensor)
                else (kept == other.state[q][key])
            ), key


def without_strides(state_dict: dict[str, Any]) -> dict[str, Any]:
    saved = copy.deepcopy(state_dict)
    for entries in saved["state"].values():
        entries.update({k: v.contiguous() for k, v in entries.items() if isinstance(v, Tensor)})
    return saved


def through_safetensors(state_dict: dict[str, Any], file: Path) -> dict[str, Any]:
    safetensors = pytest.importorskip("safetensors.torch")
    saved = without_strides(state_dict)
    kept = {
        f"{number}.{key}": value
        for number, entries in saved["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }
    safetensors.save_file(kept, file)
    for name, value in safetensors.load_file(file).items():
        number, key = name.split(".")
        saved["state"][int(number)][key] = value
    return saved


@pytest.mark.parametrize("into", ["the same order", "contiguous"])
@pytest.mark.parametrize("file_format", ["contiguous()", "safetensors"])
@tensors
def test_a_state_that_has_lost_its_strides_goes_on(
    shape: tuple[int, ...], order: Order, file_format: str, into: str, tmp_path: Path
) -> None:
    param = parameter(shape, order)
    optimizer = optimizer_of(param)
    train(param, optimizer, range(3), order)
    if file_format == "safetensors":
        saved = through_safetensors(optimizer.state_dict(), tmp_path / "state.safetensors")
    else:
        saved = without_strides(optimizer.state_dict())
    other = nn.Parameter(param.detach().clone() if into == "the same order" else param.detach().contiguous())
    resumed = optimizer_of(other)
    resumed.load_state_dict(saved)
    assert (momentum_of(resumed, other) - momentum_of(optimizer, param)).abs().max() == 0
    train(param, optimizer, range(3, 6), order)
    train(other, resumed, range(3, 6))
    assert_same(optimizer, resumed)


@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
@pytest.mark.parametrize("which", ["both", "θ", "g"])
@precisions
@tensors
def test_steps_equal_those_of_a_contiguous_twin(
    shape: tuple[int, ...], order: Order, dtype: torch.dtype, options: dict[str, Any], which: str, way: str
) -> None:
    param = parameter(shape, Tensor.contiguous if which == "g" else order, dtype)
    twin = parameter(shape, Tensor.contiguous, dtype)
    one, two = (optimizer_of(p, **options, **WAYS[way]) for p in (param, twin))
    train(param, one, range(3), Tensor.contiguous if which == "θ" else order)
    train(twin, two, range(3))
    assert_same(one, two)
    assert param.stride() == parameter(shape, Tensor.contiguous if which == "g" else order).stride()


@precisions
def test_a_model_may_change_its_memory_format_in_a_run(dtype: torch.dtype, options: dict[str, Any]) -> None:
    param, twin = (parameter((24, 10, 5, 5), Tensor.contiguous, dtype) for _ in range(2))
    one, two = optimizer_of(param, **options), optimizer_of(twin, **options)
    for steps, order in ((range(2), Tensor.contiguous), (range(2, 4), channels_last)):
        param.data = order(param.data)
        train(param, one, steps)
        train(twin, two, steps)
    assert_same(one, two)


def test_complex_parameters() -> None:
    param, twin = (parameter((60, 50), order, torch.complex64) for order in (transposed, Tensor.contiguous))
    one, two = optimizer_of(param), optimizer_of(twin)
    train(param, one, range(3), transposed)
    train(twin, two, range(3))
    assert_same(one, two)


def test_a_gradient_that_is_expanded_is_not_written_to() -> None:
    param, twin = (parameter((24, 10, 5, 5), Tensor.contiguous) for _ in range(2))
    one, two = optimizer_of(param, scale="sqrt_d"), optimizer_of(twin, scale="sqrt_d")
    for _ in range(2):
        param.grad = torch.ones(()).expand(param.shape)
        twin.grad = torch.ones(param.shape)
        one.step()
        two.step()
    assert_same(one, two)


def in_memory_order(m: Tensor) -> dict[str, Tensor]:
    """A momentum as it was kept once: codes as it lies in memory, a scale for 256 neighbours there."""
    dense = m.as_strided((m.numel(),), (1,))
    blocks = nn.functional.pad(dense, (0, -m.numel() % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    codes = torch.empty_like(m, dtype=torch.int8)
    levels = ((blocks.abs() / absmax[:, None]).sqrt() * 127).round() * blocks.sign()
    codes.as_strided((m.numel(),), (1,)).copy_(levels.view(-1)[: m.numel()])
    return {"momentum_buffer": codes, "momentum_absmax": absmax}


@pytest.mark.parametrize("way", ["torch.save", "pickle"])
@tensors
def test_a_state_whose_blocks_followed_memory_is_read_as_it_was_meant(
    shape: tuple[int, ...], order: Order, way: str, tmp_path: Path
) -> None:
    """Within one more rounding: a state that was saved, and an optimizer that was pickled as a whole."""
    param = parameter(shape, order)
    optimizer = optimizer_of(param)
    train(param, optimizer, range(2), order)
    generator = torch.Generator().manual_seed(5)
    sizes, signs = (torch.randn(shape, generator=generator) for _ in range(2))
    meant = order(signs * sizes.exp())
    optimizer.state[param].update(in_memory_order(meant))
    assert not optimizer.state[param]["momentum_buffer"].is_contiguous()
    if way == "pickle":
        optimizer.defaults["gsnr_max"] = -1.0  # as those of then had it
        resumed = pickle.loads(pickle.dumps(optimizer))
    else:
        saved = optimizer.state_dict()
        del saved["param_groups"][0]["momentum_order"]  # by which newer ones are known
        torch.save(saved, tmp_path / "state.pt")
        resumed = optimizer_of(nn.Parameter(param.detach().clone()))
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    [other] = resumed.param_groups[0]["params"]
    assert resumed.state[other]["momentum_buffer"].is_contiguous()
    assert (momentum_of(resumed, other) - meant).norm() <= 0.03 * meant.norm()
    train(other, resumed, range(2, 4), order)


@pytest.mark.parametrize("split", [1, 2])
def test_codes_that_were_laid_out_anew_are_the_same(split: int) -> None:
    """Blocks follow the index, so other strides of the codes change nothing, as of a wide momentum."""
    param = parameter((24, 10, 5, 5), channels_last)
    optimizer = optimizer_of(param, split=split)
    train(param, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["momentum_buffer"] = channels_last(saved["state"][0]["momentum_buffer"])
    if split > 1:  # whose blocks have always followed the index, also in states that do not say so
        del saved["param_groups"][0]["momentum_order"]
    other = nn.Parameter(param.detach().clone())
    resumed = optimizer_of(other)
    resumed.load_state_dict(saved)
    again = copy.deepcopy(optimizer)
    [third] = again.param_groups[0]["params"]
    again.state[third]["momentum_buffer"] = channels_last(again.state[third]["momentum_buffer"])
    again = pickle.loads(pickle.dumps(again))
    [third] = again.param_groups[0]["params"]
    for each, of in ((optimizer, param), (resumed, other), (again, third)):
        train(of, each, range(2, 5))
    assert_same(optimizer, resumed)
    assert_same(optimizer, again)


@pytest.mark.parametrize(("shape", "order"), [
    ((400, 100, 10, 10), channels_last),
    ((4000, 1000), transposed),
    ((2, 2000, 1000), transposed),
])  # fmt: skip
@precisions
def test_peak_memory(
    shape: tuple[int, ...], order: Order, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """A step allocates some pieces of 1 MiB, not a copy of the parameter, which has 4 million elements."""
    param = parameter(shape, order, dtype)
    optimizer = optimizer_of(param, **options)
    train(param, optimizer, range(1))
    give_gradients([param], 1)
    with Watch() as watch:
        optimizer.step()
    assert watch.peak <= 12 << 20
