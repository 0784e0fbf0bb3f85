"""The Triton step against the for-loop that is the truth: interpreted, and compiled where there is a GPU."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sgd_sai.compensation import compensation_of
from sgd_sai.kernels import moments, tables
from sgd_sai.quantized import Momentum8, Momentum16, create_momentum8
from sgd_sai.rounding import Noise, exactly
from sgd_sai.update import quantized, reference
from sgd_sai.update import triton_launch as way

pytest.importorskip("triton")

KERNEL = "sgd_sai.kernels.step_kernel"
HALVES = (torch.float32, torch.bfloat16, torch.float16)
MIXES = [
    *itertools.product(HALVES, HALVES, (*HALVES, None)),
    (torch.float64, torch.float64, torch.float64),
    (torch.float64, torch.float32, None),
]
# No element, one, less than a chunk, a chunk, and more than one.
SHAPES = [(0,), (), (3, 5), (way.CHUNK,), (2, way.CHUNK + 3)]
SCALES = [1.0, 0.7, 0.03, 1.0, 0.5]
OPTIONS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "maximize": False}

gpu = pytest.mark.gpu


def load_kernel(monkeypatch: pytest.MonkeyPatch, *, interpret: bool) -> ModuleType:
    """The kernels' modules, for this test alone: Triton decides when they are imported who will run them."""
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpret)))
    if interpret:  # also those functions of its language that are kernels' own
        import triton
        from triton.runtime.interpreter import InterpretedFunction

        for name, member in list(vars(triton.language.core).items()):
            monkeypatch.setattr(triton.language.core, name, member)  # the interpreter replaces them for good
        for name in ("cdiv", "interleave", "max", "sum", "zeros"):
            if isinstance(function := getattr(triton.language, name), triton.JITFunction):
                monkeypatch.setattr(triton.language, name, InterpretedFunction(function.fn))
    for name in ("moments_kernel", "probe"):
        load(monkeypatch, f"sgd_sai.kernels.{name}", Path(tables.__file__).with_name(f"{name}.py"))
    return load(monkeypatch, KERNEL, Path(tables.__file__).with_name("step_kernel.py"))


def load(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    load_kernel(monkeypatch, interpret=request.param == "cpu")
    return torch.device(request.param)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of the tables in the order in which they are uploaded."""
    upload, dtypes = tables.upload, []

    def recorded(table: Tensor, device: torch.device) -> Tensor:
        dtypes.append(table.dtype)
        return upload(table, device)

    for module in (way, tables):
        monkeypatch.setattr(module, "upload", recorded)
    return dtypes


Lists = tuple[list[Tensor], list[Tensor], list[Tensor | None]]


def launch(θs: Any, gs: Any, ms: Any, scales: list[float], **options: Any) -> None:
    """A step of parameters that are rounded to nearest."""
    way.update(θs, gs, ms, scales, roundings=[None] * len(θs), step=1, **options)


def tensors(
    device: torch.device,
    dtypes: tuple[torch.dtype | None, ...] = (torch.float32,) * 3,
    shapes: list[tuple[int, ...]] = SHAPES,
    seed: int = 0,
) -> Lists:
    generator = torch.Generator().manual_seed(seed)
    θs, gs, ms = (
        [torch.randn(s, generator=generator).to(device, d) for s in shapes] if d else [None] * len(shapes)
        for d in dtypes
    )
    return θs, gs, ms


def assert_equal(actual: Lists, expected: Lists) -> None:
    """To one unit in the last place of a half (Triton's interpreter truncates), four of a float32."""
    for a, e in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        if e is not None:
            eps = torch.finfo(e.dtype).eps
            ulps = 1 if eps > 1e-4 else 4
            torch.testing.assert_close(a, e, rtol=ulps * eps, atol=min(ulps * eps, 1e-6))


def assert_same_step(
    make: Callable[[], Lists],
    scales: list[float] = SCALES,
    cache: dict[str, Any] | None = None,
    **changed: Any,
) -> None:
    """One step of each way from the same tensors ends at the same tensors."""
    options = OPTIONS | changed
    actual, expected = make(), make()
    launch(*actual, scales, **options, cache=cache)
    reference.update(*expected, scales, **options)
    assert_equal(actual, expected)


@pytest.mark.parametrize("dtypes", MIXES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d))
def test_equals_the_reference(device: torch.device, dtypes: tuple[torch.dtype | None, ...]) -> None:
    momenta = (0.9, 0.3, 0.0) if dtypes[2] else (0.0,)
    for momentum, weight_decay, maximize in itertools.product(momenta, (0.0, 0.3), (False, True)):
        assert_same_step(
            lambda: tensors(device, dtypes), momentum=momentum, weight_decay=weight_decay, maximize=maximize
        )


Narrow = tuple[list[Tensor], list[Tensor], list[Any], list[Any]]
NARROW = [
    *itertools.product((torch.bfloat16,), HALVES, ("8bit", *HALVES, None), ("stochastic", "kahan")),
    *itertools.product((torch.float16,), HALVES, ("8bit", *HALVES, None), ("kahan",)),
    *itertools.product((*HALVES, torch.float64), HALVES, ("8bit",), ("nearest",)),
]


def narrow_tensors(
    device: torch.device, θ_dtype: torch.dtype, g_dtype: torch.dtype, state: Any, rounding: str
) -> Narrow:
    """θ, g, m and how θ is rounded; the momenta are those of earlier gradients, one of them all zeros."""
    θs, gs, ms = tensors(device, (θ_dtype, g_dtype, torch.float32))
    ms[1] = torch.zeros_like(θs[1])
    noises = [Noise(i, 7 * i) for i in range(len(θs))]
    momenta = [momentum_of(m, state, noise) for m, noise in zip(ms, noises, strict=True)]
    if rounding == "kahan":
        return θs, gs, momenta, [compensation_of(θ, θ.float() * 2**-10) for θ in θs]
    return θs, gs, momenta, noises if rounding == "stochastic" else [None] * len(θs)


def momentum_of(m: Any, state: Any, noise: Noise) -> Any:
    """A momentum with the values of `m`, as an update takes it."""
    if state is None:
        return None
    if state != "8bit":
        return m.to(state) if state == torch.float32 else Momentum16(m.to(state), noise)
    entries: dict[str, Any] = {}
    create_momentum8(entries, m, 1)
    momentum = Momentum8(entries["momentum_buffer"], entries["momentum_absmax"], noise)
    momentum.write(m)
    return momentum


def close(a: Tensor, e: Tensor, ulps: float = 1) -> bool:
    """Equal to a unit in the last place: Triton's interpreter truncates where a GPU rounds to nearest."""
    eps = torch.finfo(e.dtype).eps
    return torch.allclose(a.double(), e.double(), rtol=ulps * eps, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "kind", NARROW, ids=lambda kind: "-".join(str(of).removeprefix("torch.") for of in kind)
)
def test_narrow_equals_the_widened_reference(device: torch.device, kind: tuple[Any, ...]) -> None:
    """Momentum in 8 bits and the roundings. A second step reads what the first has written, where that was
    rounded: the interpreter truncates."""
    options = OPTIONS | {"step": (1 << 32) + 5, "maximize": True}
    actual, expected = (narrow_tensors(device, *kind) for _ in range(2))
    gradients = [g.clone() for g in actual[1]]
    # Of θ and its compensation together, by an interpreter's truncation.
    lost = 2 * torch.finfo(kind[0]).eps ** 2
    for _ in range(1 if device.type == "cpu" else 2):
        way.update(*actual[:3], SCALES, roundings=actual[3], **options)
        quantized.update(*expected[:3], SCALES, roundings=expected[3], **options)
        same = [
            (a == e).float().mean().item() for a, e in zip(actual[0], expected[0], strict=True) if a.numel()
        ]
        if kind[3] == "stochastic":  # the same bits, but where a float32 is off by its last one
            assert min(same) > 0.99
        for θ, θ_, c, c_ in zip(actual[0], expected[0], actual[3], expected[3], strict=True):
            if kind[3] == "kahan":  # together they are the exact value
                torch.testing.assert_close(exactly(θ, c), exactly(θ_, c_), rtol=lost, atol=4 * lost)
            else:
                assert close(θ, θ_)
        for m, m_ in zip(actual[2], expected[2], strict=True):
            if isinstance(m, Momentum8):
                assert (m.stored.int() - m_.stored.int()).abs().le(1).all()
                assert (m.stored != m_.stored).float().mean().nan_to_num() < 0.01
                torch.testing.assert_close(m.absmax, m_.absmax, rtol=1e-6, atol=1e-12)
            elif isinstance(m, Momentum16):
                assert close(m.stored, m_.stored)
                assert not m.stored.numel() or (m.stored == m_.stored).float().mean() > 0.99
            elif m is not None:
                assert close(m, m_)
    assert all(torch.equal(g, before) for g, before in zip(actual[1], gradients, strict=True))


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_a_gradient_that_is_not_finite_shows(device: torch.device, rounding: str) -> None:
    """In the weight, for ever; the 255 others of its block of a momentum in 8 bits go on."""
    θs, gs, momenta, roundings = narrow_tensors(device, torch.bfloat16, torch.float32, "8bit", rounding)
    nans = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32, device=device).view(torch.float32)
    gs[4].view(-1)[300:303] = nans
    way.update(θs, gs, momenta, SCALES, roundings=roundings, step=1, **OPTIONS)
    assert θs[4].view(-1)[300:303].isnan().all()
    assert θs[4].isnan().sum() == 3
    assert momenta[4].absmax.isfinite().all()
    gs[4].view(-1)[300:302] = torch.tensor([torch.inf, -torch.inf])
    gs[4].view(-1)[302:305] = torch.tensor([0.0, torch.inf, -torch.inf])
    way.update(θs, gs, momenta, SCALES, roundings=roundings, step=2, **OPTIONS)
    gs[4].view(-1)[300:305] = 0.0
    way.update(θs, gs, momenta, SCALES, roundings=roundings, step=3, **OPTIONS)
    assert not θs[4].view(-1)[300:305].isfinite().any()
    assert (~θs[4].isfinite()).sum() == 5


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_what_needs_no_rounding_stays_bit_for_bit(device: torch.device, rounding: str) -> None:
    """Infinities, zeros with their sign, the largest number and denormals, by a step that moves nothing."""
    largest = torch.finfo(torch.bfloat16).max
    denormal = 2.0**-133 if device.type == "cuda" else 1.0  # Triton's interpreter reads a denormal as 0
    special = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, largest, -largest, denormal, -denormal])
    θ = special.to(device, torch.bfloat16).repeat(100)
    before, still = θ.clone(), torch.zeros_like(θ)
    how = Noise(0) if rounding == "stochastic" else torch.zeros_like(θ, dtype=torch.int16)
    for step in range(3):
        options = OPTIONS | {"weight_decay": 0.0, "step": step}
        way.update([θ], [still], [None], [1.0], roundings=[how], **options)
        assert torch.equal(θ.view(torch.int16), before.view(torch.int16))


def test_8_bits_found_inf_and_grad_scale(device: torch.device) -> None:
    actual, expected = (
        narrow_tensors(device, torch.bfloat16, torch.bfloat16, "8bit", "stochastic") for _ in range(2)
    )
    scale = torch.tensor(1024.0, device=device)
    scaled = [g * 1024 for g in actual[1]]
    for found in (1.0, 0.0):
        inf = torch.tensor(found, device=device)
        options = OPTIONS | {"step": 3, "grad_scale": scale, "found_inf": inf}
        way.update(actual[0], scaled, actual[2], SCALES, roundings=actual[3], **options)
        if found:
            assert all(torch.equal(a, e) for a, e in zip(actual[0], expected[0], strict=True))
            assert all(torch.equal(a.stored, e.stored) for a, e in zip(actual[2], expected[2], strict=True))
    quantized.update(*expected[:3], SCALES, roundings=expected[3], step=3, **OPTIONS)
    assert all(close(a, e) for a, e in zip(actual[0], expected[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
def test_one_tensor_needs_no_table(
    device: torch.device, dtype: torch.dtype, maximize: bool, uploads: list[torch.dtype]
) -> None:
    """All but one of float64, whose factors must not be of float32."""
    actual, expected = (tensors(device, (dtype,) * 3, [(2, way.CHUNK + 3)]) for _ in range(2))
    cache: dict[str, Any] = {}
    for _ in range(2):
        uploads.clear()
        actual[1][0] = actual[1][0].clone()
        launch(*actual, [0.7], **OPTIONS | {"maximize": maximize}, cache=cache)
        reference.update(*expected, [0.7], **OPTIONS | {"maximize": maximize})
        if dtype == torch.bfloat16:
            assert all(close(a[0], e[0]) for a, e in zip(actual, expected, strict=True))
            expected = tuple([of_kind[0].clone()] for of_kind in actual)
        else:
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(actual, expected, rtol=8 * eps, atol=8 * eps)
    assert bool(uploads) == (dtype == torch.float64)


def test_another_place_in_the_group_gives_other_bits_to_the_same_tensors(device: torch.device) -> None:
    """The tables of a step are kept, but not those of another place."""
    cache: dict[str, Any] = {}
    after = []
    for places in ((0, 1), (0, 2)):
        θs = [torch.ones(2000, dtype=torch.bfloat16, device=device) for _ in range(2)]
        gs = [torch.full_like(θ, 0.01) for θ in θs]
        noises = [Noise(place) for place in places]
        way.update(
            θs,
            gs,
            [None] * 2,
            [1.0] * 2,
            roundings=noises,
            step=1,
            cache=cache,
            **OPTIONS | {"momentum": 0.0},
        )
        after.append(θs)
    assert torch.equal(after[0][0], after[1][0])
    assert not torch.equal(after[0][1], after[1][1])


def test_the_step_and_the_place_choose_the_bits(device: torch.device) -> None:
    def after(step: Any, number: int, first: int) -> Tensor:
        θ = torch.ones(5000, dtype=torch.bfloat16, device=device)
        g = torch.full_like(θ, 0.01)
        options = OPTIONS | {"momentum": 0.0, "weight_decay": 0.0, "step": step}
        way.update([θ], [g], [None], [1.0], roundings=[Noise(number, first)], **options)
        return θ.cpu()

    base = after(1, 0, 0)
    assert torch.equal(after(torch.tensor(1, device=device), 0, 0), base)
    assert torch.equal(after(1, 0, 100)[:-100], base[100:])
    assert (base < 1).float().mean().item() == pytest.approx(0.001 / 2**-8, rel=0.1)
    for other in (after(2, 0, 0), after(1, 1, 0), after(1 + (1 << 32), 0, 0)):
        both = ((other < 1) & (base < 1)).float().mean().item()
        assert both == pytest.approx((0.001 / 2**-8) ** 2, rel=0.25)  # independent


def test_options_keep_the_precision_of_float64(device: torch.device) -> None:
    """0.1 and 0.3 as float32 would be 1e-8 away."""
    actual, expected = (tensors(device, (torch.float64,) * 3) for _ in range(2))
    launch(*actual, SCALES, **OPTIONS)
    reference.update(*expected, SCALES, **OPTIONS)
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.9, 0.3])
def test_momentum_that_is_the_gradient_stays_so_exactly(device: torch.device, momentum: float) -> None:
    θs, gs, _ = tensors(device)
    ms = [g.clone() for g in gs]
    launch(θs, gs, ms, SCALES, **OPTIONS | {"momentum": momentum})
    assert all(torch.equal(m, g) for m, g in zip(ms, gs, strict=True))


def test_mixed_dtypes_take_one_launch_each(device: torch.device) -> None:
    def make() -> Lists:
        parts = [tensors(device, (torch.float32,) * 3), tensors(device, (torch.bfloat16,) * 3, seed=1)]
        θs, gs, ms = (
            [t for pair in zip(*of_kind, strict=True) for t in pair] for of_kind in zip(*parts, strict=True)
        )  # alternating
        return θs, gs, ms

    cache: dict[str, Any] = {}
    assert_same_step(make, [scale for scale in SCALES for _ in range(2)], cache)
    assert len(cache["launches"]) == 2


def test_hundreds_of_tiny_tensors_take_one_launch(device: torch.device) -> None:
    shapes = [(i % 7,) for i in range(200)]
    cache: dict[str, Any] = {}
    assert_same_step(lambda: tensors(device, shapes=shapes), [1 / (i + 1) for i in range(200)], cache)
    assert len(cache["launches"]) == 1


def test_nothing_to_do(device: torch.device) -> None:
    launch([], [], [], [], **OPTIONS)
    launch(*tensors(device, shapes=[(0, 3)]), [1.0], **OPTIONS)


ORDERS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "transposed": (lambda t: t.mT.contiguous().mT,) * 3,
    "channels last": (lambda t: t.contiguous(memory_format=torch.channels_last),) * 3,
    "one channel": (
        lambda t: t[:, :1].contiguous(memory_format=torch.channels_last),
        lambda t: t[:, :1].contiguous(),
        lambda t: t[:, :1].contiguous(),
    ),
    "other order of g": (lambda t: t, lambda t: t.mT.contiguous().mT, lambda t: t),
    "other order of m": (lambda t: t, lambda t: t, lambda t: t.mT.contiguous().mT),
    "other order of θ": (lambda t: t.mT.contiguous().mT, lambda t: t, lambda t: t),
    "gaps in θ": (
        lambda t: t[..., ::2],
        lambda t: t[..., ::2].contiguous(),
        lambda t: t[..., ::2].contiguous(),
    ),
    "gaps in all": (lambda t: t[..., ::2],) * 3,
    "expanded g": (lambda t: t, lambda t: t[:1, :1, :1, :1].expand(t.shape), lambda t: t),
}


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_in_memory(device: torch.device, order: str) -> None:
    def make() -> Lists:
        lists = tensors(device, shapes=[(4, 6, 10, 16), (5,)])
        for of_kind, arrange in zip(lists, ORDERS[order], strict=True):
            of_kind[0] = arrange(of_kind[0])
        return lists

    cache: dict[str, Any] = {}
    assert_same_step(make, SCALES[:2], cache)
    copied = any(launch.copies for launch in cache["launches"])
    assert copied == order.startswith(("other", "gaps", "expanded"))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
@pytest.mark.parametrize("order", ORDERS)
def test_8_bits_in_any_order_in_memory(device: torch.device, order: str, rounding: str) -> None:
    """As a contiguous twin, bit for bit: the blocks and the bits of stochastic rounding follow the index."""

    def make(*, contiguous: bool = False) -> Narrow:
        of_kind = tensors(device, (torch.bfloat16, torch.bfloat16, torch.float32), [(4, 6, 10, 16)])
        θ, g, m = (arrange(t[0]) for arrange, t in zip(ORDERS[order], of_kind, strict=True))  # type: ignore[arg-type]
        if contiguous:
            θ, g, m = θ.contiguous(), g.contiguous(), m.contiguous()
        low = torch.zeros_like(θ, dtype=torch.int16)
        how = {"nearest": None, "stochastic": Noise(2, 7), "kahan": low}[rounding]
        return [θ], [g], [momentum_of(m, "8bit", Noise(0))], [how]

    def step(which: Narrow, number: int, update: Callable[..., None] = way.update) -> None:
        update(*which[:3], [0.5], roundings=which[3], step=number, **OPTIONS)

    strided, twin, expected = make(), make(contiguous=True), make()
    step(expected, 1, quantized.update)
    for number in (1, 2):
        step(strided, number)
        step(twin, number)
        assert torch.equal(strided[0][0], twin[0][0])
        assert torch.equal(strided[2][0].stored, twin[2][0].stored)
        assert torch.equal(strided[2][0].absmax, twin[2][0].absmax)
        assert rounding != "kahan" or torch.equal(strided[3][0], twin[3][0])
        if number == 1:
            assert close(strided[0][0], expected[0][0])
            assert rounding != "stochastic" or (strided[0][0] == expected[0][0]).float().mean() > 0.99
            assert (strided[2][0].stored.int() - expected[2][0].stored.int()).abs().max() <= 1
            torch.testing.assert_close(strided[2][0].absmax, expected[2][0].absmax)


@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("size", [1, way.CHUNK - 1, way.CHUNK, way.CHUNK + 1])
def test_no_neighbour_is_touched_at_any_alignment(device: torch.device, offset: int, size: int) -> None:
    whole = tensors(device, shapes=[(size + 16,)])
    before = [of_kind[0].clone() for of_kind in whole]
    inner: Any = [[of_kind[0][offset : offset + size]] for of_kind in whole]
    expected: Any = [[t[0].clone()] for t in inner]
    launch(*inner, [0.5], **OPTIONS)
    reference.update(*expected, [0.5], **OPTIONS)
    assert_equal(inner, expected)
    for of_kind, old in zip(whole, before, strict=True):
        assert torch.equal(of_kind[0][:offset], old[:offset])
        assert torch.equal(of_kind[0][offset + size :], old[offset + size :])


def test_elements_beyond_2_to_the_31(device: torch.device) -> None:
    """The last chunk of 2³³ + 5 elements, whose first 2³³ are only an address."""
    elements = 2**33
    θ, g, m = (torch.randn(5, generator=torch.Generator().manual_seed(i)).to(device) for i in range(3))
    expected = [t.clone() for t in (θ, g, m)]
    kernel = sys.modules[KERNEL]
    kernel.step[(1,)](
        torch.tensor([[0, elements // way.CHUNK]], dtype=torch.int32, device=device),
        torch.tensor([elements + 5], device=device),
        torch.tensor([t.data_ptr() - 4 * elements for t in (θ, g, m)] + [0, 0], device=device),
        torch.tensor([0.5], dtype=torch.float64, device=device),
        None,
        torch.tensor([0.9, 0.3], dtype=torch.float64, device=device),
        torch.tensor(0.1, device=device),
        None,
        None,
        None,
        *(kernel.TYPES[torch.float32] for _ in range(3)),
        "nearest",
        False,
        way.CHUNK,
    )
    reference.update(*([t] for t in expected), [0.5], **OPTIONS)
    assert_equal(([θ], [g], [m]), tuple([t] for t in expected))


def test_chunks_of_a_tensor_beyond_2_to_the_31() -> None:
    chunks = tables.chunks_of(torch.tensor([1, 2**33 + 5, 0, way.CHUNK]), way.CHUNK)
    assert chunks.dtype == torch.int32
    assert len(chunks) == 1 + (2**33 // way.CHUNK + 1) + 1
    assert chunks[[0, 1, 2, -2, -1]].tolist() == [[0, 0], [1, 0], [1, 1], [1, 2**33 // way.CHUNK], [3, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lr_as_a_tensor(device: torch.device, dtype: torch.dtype, uploads: list[torch.dtype]) -> None:
    lr = torch.tensor(0.125, dtype=dtype, device=device)
    cache: dict[str, Any] = {}
    actual, expected = tensors(device), tensors(device)
    launch(*actual, SCALES, **OPTIONS | {"lr": lr}, cache=cache)
    lr.fill_(0.5)
    uploads.clear()
    launch(*actual, SCALES, **OPTIONS | {"lr": lr}, cache=cache)
    assert not uploads
    for value in (0.125, 0.5):
        reference.update(*expected, SCALES, **OPTIONS | {"lr": value})
    assert_equal(actual, expected)


@pytest.mark.parametrize("maximize", [False, True])
def test_grad_scale_divides_the_gradient_and_leaves_it_as_it_is(device: torch.device, maximize: bool) -> None:
    actual, expected = tensors(device), tensors(device)
    for g in actual[1]:
        g *= 1024.0
    scaled = [g.clone() for g in actual[1]]
    options = OPTIONS | {"maximize": maximize}
    launch(*actual, SCALES, **options, grad_scale=torch.tensor(1024.0, device=device))
    assert all(torch.equal(g, s) for g, s in zip(actual[1], scaled, strict=True))
    reference.update(*expected, SCALES, **options)
    assert_equal((actual[0], [], actual[2]), (expected[0], [], expected[2]))


@pytest.mark.parametrize("found", [0.0, 1.0])
@pytest.mark.parametrize("order", ["dense", "gaps"])
def test_found_inf(device: torch.device, found: float, order: str) -> None:
    actual = tensors(device)
    if order == "gaps":
        actual[0][-1] = actual[0][-1].repeat(1, 2)[:, ::2]
    before = [t.clone() for of_kind in actual for t in of_kind]
    launch(*actual, SCALES, **OPTIONS, found_inf=torch.tensor([found], device=device))
    same = [torch.equal(t, b) for t, b in zip(itertools.chain(*actual), before, strict=True)]
    moving = [i for i, b in enumerate(before) if b.numel() and not len(SHAPES) <= i < 2 * len(SHAPES)]
    assert [i for i, equal in enumerate(same) if not equal] == (moving if not found else [])


def test_tables_are_uploaded_when_something_has_changed(
    device: torch.device, uploads: list[torch.dtype]
) -> None:
    θs, gs, ms = tensors(device)
    expected = tensors(device)
    options, scales = dict(OPTIONS), list(SCALES)
    cache: dict[str, Any] = {}

    def step() -> list[torch.dtype]:
        uploads.clear()
        launch(θs, gs, ms, scales, **options, cache=cache)
        reference.update(*expected, scales, **options)
        assert_equal((θs, gs, ms), expected)
        return list(uploads)

    assert sorted(step(), key=str) == [torch.float64] * 3 + [torch.int32] + [torch.int64] * 2
    assert step() == []
    kept = gs[1]
    gs[1] = kept.clone() + 1
    expected[1][1] = expected[1][1] + 1
    assert step() == [torch.int64]
    scales[2] = 0.5
    assert step() == [torch.float64]
    options["lr"] = 0.05
    assert step() == [torch.float64]
    options["momentum"] = 0.8
    assert step() == [torch.float64]
    for lists in ((θs, gs, ms), expected):
        for of_kind in lists:
            of_kind[2] = of_kind[2][:2]  # at the same address
    assert len(step()) == 6
    assert step() == []


@pytest.mark.parametrize("of_params", [(0, 1, 2), (2, 0, 1)])
def test_the_gradient_in_another_order_at_the_same_address(
    device: torch.device, of_params: tuple[int, int, int]
) -> None:
    def arranged(buffer: Tensor, order: tuple[int, ...]) -> Tensor:
        """The buffer as (2, 3, 4), its dims in this order in memory, the last one fastest."""
        there = buffer.view([(2, 3, 4)[dim] for dim in order])
        return there.permute([order.index(dim) for dim in range(3)])

    def make() -> list[list[Tensor]]:
        return [[arranged(of_kind[0], of_params)] for of_kind in tensors(device, shapes=[(24,)])]

    (θs, gs, ms), expected = make(), make()
    cache: dict[str, Any] = {}
    for order in (of_params, *itertools.permutations((2, 1, 0)), of_params):
        g = gs[0].as_strided((2, 3, 4), arranged(torch.empty(24), order).stride())
        launch(θs, [g], ms, [1.0], **OPTIONS, cache=cache)
        reference.update(expected[0], [g], expected[2], [1.0], **OPTIONS)
        assert_equal((θs, [], ms), (expected[0], [], expected[2]))


def test_moments_equal_those_of_float64(device: torch.device) -> None:
    shapes = [(), (5,), (0,), (moments.CHUNK,), (3, moments.CHUNK + 1), (1000, 17)]
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(s, generator=generator).to(d) for s in shapes for d in (*HALVES, torch.float64)]
    grads[-1][:7] = 0.0
    grads += [grads[-1][:, ::2], grads[-1][:60].view(4, 5, 3, 17).to(memory_format=torch.channels_last)]
    grads.append(torch._neg_view(grads[1]))  # whose bytes are those of its negative
    exact = [g.double() for g in grads]
    expected = torch.stack([torch.stack((g.sum(), g.square().sum(), g.count_nonzero())) for g in exact])
    for of in (slice(None), slice(0, None, 4)):  # of several dtypes, and of one
        actual = moments.sums([grad.to(device) for grad in grads[of]])
        torch.testing.assert_close(actual.cpu(), expected[of], rtol=1e-12, atol=1e-9)
    assert moments.sums([torch.tensor([1.0, torch.nan], device=device)]).isnan().tolist() == [
        [True, True, False]
    ]


def test_autograd_notices_the_step(device: torch.device) -> None:
    θ = torch.randn(3, device=device, requires_grad=True)
    loss = (θ * θ).sum()
    with torch.no_grad():
        launch([θ], [torch.randn(3, device=device)], [None], [1.0], **OPTIONS | {"momentum": 0.0})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_available_and_imported_without_triton() -> None:
    program = """if True:
        import os, sys, torch
        from sgd_sai.kernels import tables as triton
        cpu = torch.device("cpu")
        os.environ.pop("TRITON_INTERPRET", None)
        print("triton" in sys.modules, triton.available(cpu), triton.available(torch.device("meta")))
        os.environ["TRITON_INTERPRET"] = "1"
        print(triton.available(cpu))
        sys.modules["triton"] = None  # as if it were not installed
        triton._installed.cache_clear()
        print(triton.available(cpu))
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "False", "True", "False"]


def test_a_triton_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, a kernel wants a GPU: here it finds none, or a tensor that is not there."""
    load_kernel(monkeypatch, interpret=False)
    why = tables.failure(torch.device("cpu"))
    assert why is not None
    assert re.fullmatch(r"\w+: .+", why)


def test_a_triton_that_can_run_has_no_failure(device: torch.device) -> None:
    assert tables.failure(device) is None


@gpu
def test_without_a_c_compiler_steps_are_torchs_own(tmp_path: Path) -> None:
    program = """if True:
        import torch, warnings
        from sgd_sai import SGDSaI
        params = [torch.nn.Parameter(torch.arange(1.0, 9.0, device="cuda")) for _ in range(3)]
        optimizers = [SGDSaI([param], 0.1, foreach=of) for param, of in zip(params, (None, True))]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                for param, optimizer in zip(params[:2], optimizers):
                    param.grad = torch.arange(8.0, device="cuda")
                    optimizer.step()
        told = [str(w.message)[:44] for w in caught if "Triton" in str(w.message)]
        print(torch.equal(*params[:2]), *told, sep="|")
        try:
            params[2].grad = torch.arange(8.0, device="cuda")
            SGDSaI(params[2:], fused=True).step()
        except RuntimeError as error:
            print(error)
    """
    environment = {**os.environ, "CC": str(tmp_path / "missing"), "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    first, second = run.stdout.splitlines()
    assert first == "True|SGDSaI: Triton cannot compile a kernel for c"
    assert second.startswith("fused=True requires Triton, which is unavailable on cuda")


def compiled_for(
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    name: str,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None],
    rounding: str,
    capability: int,
) -> Any:
    """A kernel, compiled ahead of time for θ, g and m of these dtypes."""
    triton = pytest.importorskip("triton", minversion="3.3")  # older ones name the arguments otherwise
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    kernel = load_kernel(monkeypatch, interpret=False)
    arguments = {
        "step": {
            "chunks": "*i32", "sizes": "*i64", "addresses": "*i64", "scales": "*fp64", "places": "*i64",
            "factors": "*fp64", "lr": "*fp32", "count": "*i64", "grad_scale": "*fp32", "found_inf": "*fp32",
        },
        "step_alone": {
            "θ_address": "i64", "g_address": "i64", "m_address": "i64", "absmax_address": "i64",
            "c_address": "i64", "size": "i64", "sign": "fp32", "rate": "fp32", "decayed": "fp32",
            "ηG": "fp32", "count": "i64", "first": "i64",
        },
    }[name]  # fmt: skip
    constants = dict(zip(("θ_type", "g_type", "m_type"), map(kernel.TYPES.get, dtypes), strict=True)) | {
        "rounding": rounding,
        "chunk_size": way.CHUNK,
    }
    if name == "step":
        constants["maximize"] = False
    source = triton.compiler.ASTSource(
        getattr(kernel, name),
        signature=arguments | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", ["step", "step_alone"])
@pytest.mark.parametrize(("θ", "m", "rounding"), [
    ("float32", "float32", "nearest"),
    ("float32", "int8", "nearest"),
    ("bfloat16", "float32", "nearest"),
    ("bfloat16", "bfloat16", "stochastic"),
    ("bfloat16", "float16", "nearest"),
    ("bfloat16", "int8", "stochastic"),
    ("bfloat16", None, "stochastic"),
    ("bfloat16", "int8", "kahan"),
    ("float16", None, "kahan"),
])  # fmt: skip
def test_compiles_to_vectors_of_16_bytes_and_few_registers(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    θ: str,
    m: str | None,
    rounding: str,
    capability: int,
    name: str,
) -> None:
    dtypes = (getattr(torch, θ), getattr(torch, θ), getattr(torch, m) if m else None)
    compiled = compiled_for(monkeypatch, tmp_path, name, dtypes, rounding, capability)
    written = [dtype for dtype in (dtypes[0], dtypes[2]) if dtype] + [dtypes[0]] * (rounding == "kahan")
    for verb, moved in (("ld", [*written, dtypes[1]]), ("st", written)):
        vectors = sum(way.CHUNK * dtype.itemsize // 16 for dtype in moved) // (
            32 * compiled.metadata.num_warps
        )
        assert len(re.findall(rf"{verb}\.global\S*\.v4\.", compiled.asm["ptx"])) == vectors
    (tmp_path / "step.cubin").write_bytes(compiled.asm["cubin"])
    tool = [nvidia().cuobjdump.path, "--dump-resource-usage", str(tmp_path / "step.cubin")]
    usage = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    assert used["REG"] <= 96  # five programs on a multiprocessor at least, enough loads to fill its memory
    assert used["STACK"] == used["LOCAL"] == 0  # nothing is spilled
    assert compiled.metadata.shared <= 8192


@pytest.mark.parametrize(("rounding", "bytes_moved"), [("stochastic", 8), ("kahan", 12)])
def test_an_element_takes_few_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rounding: str, bytes_moved: int
) -> None:
    """On an H200 a step of 64 instructions for 8 bytes took 1.27 times as long as a copy of its bytes."""
    dtypes = (torch.bfloat16, torch.bfloat16, torch.int8)
    compiled = compiled_for(monkeypatch, tmp_path, "step", dtypes, rounding, 90)
    (tmp_path / "step.cubin").write_bytes(compiled.asm["cubin"])
    tool = [nvidia().nvdisasm.path, "-c", str(tmp_path / "step.cubin")]
    listing = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    lines = [line for line in listing.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/", line)]
    moves = [i for i, line in enumerate(lines) if "LDG.E.128" in line or "STG.E.128" in line]
    elements_of_a_thread = way.CHUNK // (32 * compiled.metadata.num_warps)
    assert 1 < (moves[-1] - moves[0]) / elements_of_a_thread / bytes_moved < 6


def nvidia() -> Any:
    """Where Triton has NVIDIA's tools."""
    return pytest.importorskip("triton").knobs.nvidia


def test_no_argument_has_a_name_that_triton_takes_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a launch on a GPU binds the arguments; one called `options` would fail there alone."""
    jit = pytest.importorskip("triton.runtime.jit")
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    step = load_kernel(monkeypatch, interpret=False).step
    binder = jit.create_function_from_signature(
        step.signature, step.params, make_backend(GPUTarget("cuda", 90, 32))
    )
    assert callable(binder)


def test_one_compiled_kernel_fits_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Alone` keeps the kernel that its first launch compiled."""
    jit = pytest.importorskip("triton.runtime.jit")
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    kernel = load_kernel(monkeypatch, interpret=False).step_alone
    binder = jit.create_function_from_signature(
        kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32))
    )
    kinds = (*map(kernel.fn.__globals__["TYPES"].get, HALVES), "nearest", way.CHUNK)
    bound = [
        binder(*[integer] * 6, *[real] * 4, *[integer] * 2, *kinds)[1]
        for integer, real in ((0, 0.0), (1, 1.0), (16, 1e-30), (2**40, -1.0), (2**40 + 1, 1e30))
    ]
    assert all(each == bound[0] for each in bound[1:])
    assert [kind for kind, _ in bound[0][:12]] == ["i64"] * 6 + ["fp32"] * 4 + ["i64"] * 2


@gpu
def test_no_step_waits_for_the_device() -> None:
    cuda = torch.device("cuda")
    θs, gs, ms = tensors(cuda)
    numbers = {"grad_scale": torch.ones((), device=cuda), "found_inf": torch.zeros((), device=cuda)}
    cache: dict[str, Any] = {}
    launch(θs, gs, ms, SCALES, **OPTIONS, **numbers, cache=cache)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for lr in (0.1, 0.1, 0.05, torch.ones((), device=cuda)):
            gs = [g.clone() for g in gs]
            launch(θs, gs, ms, SCALES, **OPTIONS | {"lr": lr}, **numbers, cache=cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
def test_cuda_graph_replays_with_the_lr_of_the_moment() -> None:
    cuda = torch.device("cuda")
    actual, expected = tensors(cuda), tensors(cuda)
    lr = torch.tensor(0.1, device=cuda)
    options = OPTIONS | {"lr": lr}
    cache: dict[str, Any] = {}
    launch(*actual, SCALES, **options, cache=cache)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(*actual, SCALES, **options, cache=cache)
    # A step in between with other gradients takes new tables; the graph keeps its own.
    others = [torch.zeros_like(g) for g in actual[1]]
    launch(actual[0], others, actual[2], SCALES, **options, cache=cache)
    for value in (0.5, 0.25):
        lr.fill_(value)
        graph.replay()
    reference.update(*expected, SCALES, **OPTIONS)
    reference.update(expected[0], others, expected[2], SCALES, **OPTIONS)
    for value in (0.5, 0.25):
        reference.update(*expected, SCALES, **OPTIONS | {"lr": value})
    assert_equal(actual, expected)


@gpu
def test_capture_without_tables_is_an_error() -> None:
    cuda = torch.device("cuda")
    lists = tensors(cuda)
    with (
        pytest.raises(RuntimeError, match="cannot be uploaded in a CUDA graph capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        launch(*lists, SCALES, **OPTIONS, cache={})
