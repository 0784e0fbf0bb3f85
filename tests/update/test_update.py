"""Each way to compute a step against the for-loop that is the truth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sgd_sai.update import cpu, foreach, reference, update

SHAPES = [(), (0,), (3,), (100, 9), (1300, 1700), (2, 8, 500, 300)]
SCALES = [1.0, 0.7, 0.03, 0.0, 0.5, 1e-3]
MIXES = {
    "float32": (torch.float32, torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64, torch.float64),
    "bfloat16": (torch.bfloat16, torch.bfloat16, torch.float32),
    "float16 θ, float32 g": (torch.float16, torch.float32, torch.float32),
    "float32 θ, bfloat16 m": (torch.float32, torch.float32, torch.bfloat16),
}


@lru_cache(1)  # they are large, and each test wants its mix often
def drawn(mix: str) -> list[list[Tensor]]:
    """Parameters, gradients and momenta."""
    generator = torch.Generator().manual_seed(0)
    lists = [[torch.randn(s, generator=generator).to(dtype) for s in SHAPES] for dtype in MIXES[mix]]
    for of_kind in lists:  # the last one in another memory order
        of_kind[-1] = of_kind[-1].to(memory_format=torch.channels_last)
    lists[1][3] = lists[1][3].T.contiguous().T  # and one gradient in an order of its own
    return lists


def tensors(mix: str, kept: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    params, grads, momenta = ([tensor.clone() for tensor in of_kind] for of_kind in drawn(mix))
    assert grads[3].stride() == drawn(mix)[1][3].stride() != grads[3].contiguous().stride()
    return params, grads, momenta if kept else [None] * len(params)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The CPU has ways of its own for one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("way", [foreach, cpu], ids=lambda way: way.__name__.rpartition(".")[2])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float lr", "tensor lr"])
def test_equals_the_reference(way: ModuleType, mix: str, lr: float | Tensor) -> None:
    # Where momentum was switched off there is still a buffer.
    momenta = (0.0, False), (0.0, True), (0.9, True)
    for (momentum, kept), weight_decay, maximize in itertools.product(momenta, (0.0, 0.3), (False, True)):
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        expected, actual = tensors(mix, kept), tensors(mix, kept)
        reference.update(*expected, SCALES, **options)
        way.update(*actual, SCALES, **options)
        torch.testing.assert_close(actual, expected, msg=lambda m, o=options: f"{o}: {m}")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("way", [foreach, cpu], ids=lambda way: way.__name__.rpartition(".")[2])
def test_decay_takes_the_factor_of_the_reference(way: ModuleType) -> None:
    """1 − λη as float32 has it, or thousands of steps would drift apart."""
    expected, actual = [torch.ones(2)], [torch.ones(2)]
    for of_way, params in ((reference, expected), (way, actual)):
        for _ in range(2000):
            of_way.update(
                params,
                [torch.zeros(2)],
                [None],
                [1.0],
                lr=1e-3,
                momentum=0,
                weight_decay=0.01,
                maximize=False,
            )
    torch.testing.assert_close(actual, expected, rtol=3e-5, atol=0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-300, 1e-41, 1e-30, 1e-9, 0.0])
@pytest.mark.parametrize("decay", [0.1, 1e-7])
def test_a_tiny_scale_decays_a_weight_as_any_other(
    momentum: float, dtype: torch.dtype, scale: float, decay: float
) -> None:
    """The CPU's kernel is given λ/G, which may be beyond float32; and weights may be large."""
    for size in (100, 9000, 300_000):
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(size, generator=generator) * (10.0**exponent) for exponent in (6, 0, 0)]
        options = {"lr": 0.01, "momentum": momentum, "weight_decay": decay, "maximize": False}
        results = []
        for way in (reference, foreach, cpu):
            θ, g, m = (tensor.to(dtype) for tensor in drawn)
            way.update([θ], [g], [m.to(θ.dtype) if momentum else None], [scale], **options)
            results.append(θ)
        assert results[0].isfinite().all()
        torch.testing.assert_close(results[1:], 2 * results[:1])


def test_fused_on_a_device_without_triton() -> None:
    group = dict.fromkeys(("momentum", "weight_decay"), 0.0) | {
        "maximize": False, "state_dtype": None, "rounding": "nearest",
        "differentiable": False, "foreach": None, "fused": True,
    }  # fmt: skip
    θ, g = (torch.empty(3, device="meta") for _ in range(2))
    with pytest.raises(RuntimeError, match="fused=True requires Triton, which is unavailable on meta"):
        update(
            [θ], [g], [None], [1.0], [None],
            lr=0.1, step=1, group=group, narrow=False, compiling=False, amp={}, cache={},
        )  # fmt: skip
