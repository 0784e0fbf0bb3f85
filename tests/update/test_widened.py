"""The step on fewer bits on the CPU, beside `quantized`, which says what it shall do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sgd_sai import SGDSaI
from sgd_sai.quantized import BLOCK, Momentum8, Momentum16, stored_in
from sgd_sai.rounding import Noise, uniform
from sgd_sai.update import cpu, quantized, reference, widened

SHAPES = [(1300,), (40, 33), (3, 7, 10, 10)]
SCALES = [0.7, 0.0, 1e-3]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
#: Momentum's bits, and how θ is rounded.
KINDS = list(itertools.product(("none", "16", "8", "32"), ("nearest", "stochastic", "kahan")))

Tensors = list[list[Any]]


def in_8_bits(m: Tensor, noise: Noise) -> Momentum8:
    codes = torch.zeros(m.shape, dtype=torch.int8)
    held = Momentum8(codes, torch.zeros(-(-m.numel() // BLOCK)), noise)
    held.write(m)
    return held


def tensors(dtype: torch.dtype, bits: str, rounding: str, order: str) -> Tensors:
    """θ, g, m and how θ is rounded."""
    generator = torch.Generator().manual_seed(0)
    θs, gs, ms = ([torch.randn(s, generator=generator) for s in SHAPES] for _ in range(3))
    ms[0][:BLOCK] = 0.0  # a block that has no largest element
    θs, gs = ([t.to(dtype) for t in of] for of in (θs, gs))
    if order == "channels last":
        for of in (θs, gs, ms):
            of[2] = of[2].to(memory_format=torch.channels_last)
    elif order == "other":  # of the gradients
        gs[1] = gs[1].T.contiguous().T
    held: list[Any] = {
        "none": [None] * 3,
        "16": [Momentum16(m.bfloat16(), Noise(i, 300 * i)) for i, m in enumerate(ms)],
        "8": [in_8_bits(m, Noise(i, 300 * i)) for i, m in enumerate(ms)],
        "32": ms,
    }[bits]
    how: list[Any] = {
        "nearest": [None] * 3,
        "stochastic": [Noise(i, 300 * i) for i in range(3)],
        "kahan": [(θ.float() * 12345).to(torch.int16) for θ in θs],
    }[rounding]
    return [θs, gs, held, how]


def flat_states(of: Tensors) -> list[Tensor]:
    """What a momentum and a rounding keep."""
    momenta = [t for m in of[2] for t in stored_in(m)]
    return [t for t in [*momenta, *of[3]] if isinstance(t, Tensor)]


@pytest.mark.parametrize("order", ["contiguous", "channels last", "other"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "rounding"), KINDS)
def test_equals_quantized(
    dtype: str, bits: str, rounding: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of 1024, 512 or 256 elements; three steps, each on what the one before has written."""
    if rounding != "nearest" and dtype != "bfloat16":
        pytest.skip("only what has 16 bits is rounded so")
    monkeypatch.setattr(widened, "_PIECE", 1024)
    eps = max(torch.finfo(DTYPES[dtype]).eps, torch.finfo(torch.float32).eps)
    for λ, maximize, lr in (
        (0.3, False, 0.1),
        (0.3, True, torch.tensor(0.1)),
        (0.0, True, 0.1),
        (0.3, False, 0),
    ):
        given = [tensors(DTYPES[dtype], bits, rounding, order) for _ in range(2)]
        for step, (way, (θs, gs, ms, how)) in itertools.product(
            (1, 2, 3), zip((widened, quantized), given, strict=True)
        ):
            way.update(
                θs, gs, ms, SCALES, roundings=how, step=step,
                lr=lr, momentum=0.9, weight_decay=λ, maximize=maximize,
            )  # fmt: skip
        (actual, expected), untouched = given, tensors(DTYPES[dtype], bits, rounding, order)
        assert all(map(torch.equal, flat_states(actual), flat_states(expected)))
        assert all(map(torch.equal, actual[1], untouched[1]))
        if rounding == "nearest":  # a unit in the last place may be most of what is left three steps later
            torch.testing.assert_close(actual[0], expected[0], rtol=2 * eps, atol=2 * eps)
        else:
            assert all(map(torch.equal, actual[0], expected[0]))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 5000])
@pytest.mark.parametrize("size", [1.0, 1e-38, 1e-45, 1e30], ids=str)
def test_8_bits_in_place_are_those_of_the_definition(count: int, size: float) -> None:
    """Bit for bit: every code with every kind of scale, between two codes, and what is not finite."""
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(-127, 128, (count,), generator=generator, dtype=torch.int8)
    absmax = torch.rand(-(-count // BLOCK), generator=generator) * size
    held = Momentum8(codes, absmax)
    filled = absmax.numel() * BLOCK
    room = torch.full((3, filled), torch.nan)  # whatever was there before
    read = held.read_in_place(room[0], room[1])
    assert torch.equal(read, held.read())
    halves = torch.arange(-127, 127).repeat(20)[:count] + 0.5
    for m in (
        torch.randn(count, generator=generator) * size,
        halves.abs() * halves * size,  # the square of what lies halfway between codes, and its sign
        torch.zeros(count),
        torch.full((count,), size).index_fill(0, torch.tensor([0, count // 2]), torch.nan),
        torch.full((count,), -size).index_fill(0, torch.tensor([0, count // 2]), torch.inf),
    ):
        expected = Momentum8(torch.empty_like(codes), torch.empty_like(absmax))
        expected.write(m, step=7)
        read.copy_(m)
        held.write_in_place(*room, uniform(room[0], Noise(0), 7))
        assert torch.equal(held.absmax, expected.absmax)
        assert torch.equal(held.stored, expected.stored)


def test_autograd_notices_what_a_step_has_written() -> None:
    θ = torch.zeros(10_000)
    before = θ._version
    cpu.update(
        [θ], [torch.ones(10_000)], [torch.ones(10_000, dtype=torch.bfloat16)], [1.0],
        lr=0.1, momentum=0.9, weight_decay=0.1, maximize=False,
    )  # fmt: skip
    assert θ._version > before


def test_tensors_of_few_elements_take_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go through lists, and are what the reference makes of them."""
    monkeypatch.delattr(widened, "update")
    generator = torch.Generator().manual_seed(0)
    θs, gs, ms = ([torch.randn(100, generator=generator) for _ in range(5)] for _ in range(3))
    actual, expected = (
        ([θ.clone() for θ in θs], gs, [m.bfloat16() for m in ms], [0.5] * 5) for _ in range(2)
    )
    for way, of in ((cpu, actual), (reference, expected)):
        way.update(*of, lr=0.1, momentum=0.9, weight_decay=0.1, maximize=False)
    torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(not torch._dynamo.is_dynamo_supported(), reason="torch.compile does not run here")
@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"rounding": "kahan"}], ids=str)
def test_a_compiled_graph_does_not_grow_with_the_tensors(options: dict[str, Any]) -> None:
    """Pieces would each be a copy of the whole; lists, as of `foreach`, are no single loop on the CPU."""
    sizes = []
    for count in (1 << 13, 1 << 20):
        found: list[list[str]] = []

        def keep(graph: torch.fx.GraphModule, _: Any, into: list[list[str]] = found) -> Any:
            into.append([str(node.target) for node in graph.graph.nodes])
            return graph.forward

        param = torch.nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
        optimizer = SGDSaI([param], lr=0.1, scale="sqrt_d", **options)
        torch._dynamo.reset()
        for _ in range(2):
            param.grad = torch.ones_like(param)
            torch.compile(optimizer.step, backend=keep)()
        [targets] = found
        assert not any("foreach" in target for target in targets)
        sizes.append(len(targets))
    assert sizes[0] == sizes[1]
