"""`rounding="kahan"`: a bfloat16 and its compensation are a float32, and train as one."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from optimizer_info import WAYS, give_gradients
from sgd_sai import SGDSaI, gradient_release
from sgd_sai.compensation import compensation_of
from sgd_sai.rounding import exactly, round_to
from sgd_sai.update import quantized, widened

FOR_LOOP = WAYS["for-loop"]
#: How each way is asked for, and its like whose float32 does the same arithmetic to the last bit.
EAGER = {
    "for-loop": (FOR_LOOP, FOR_LOOP),
    "foreach": ({"foreach": True}, FOR_LOOP),
    "default": ({}, FOR_LOOP),
}
FUSED = {"fused": True}
STATES: dict[str, dict[str, Any]] = {
    "fp32 m": {},
    "bf16 m": {"state_dtype": torch.bfloat16},
    "8-bit m": {"state_dtype": "8bit"},
    "no m": {"momentum": 0.0},
}
#: Of a bfloat16, all of its numbers, and the compensations with which one is likely to go wrong.
EVERY = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
EXTREME = [-(1 << 15), -(1 << 15) + 1, -12345, -1, 0, 1, 12345, (1 << 15) - 1]
OVERFLOWS = math.ldexp(2 - 2**-8, 127)


def joined(θ: Tensor, low: Tensor) -> Tensor:
    """The float32 whose upper bits are θ's, rounded, and whose lower bits are `low`."""
    assert low.dtype == torch.int16
    return ((θ.detach().view(torch.int16).int() << 16) + low).view(torch.float32)


def half_an_ulp(θ: Tensor) -> Tensor:
    """Half of the step from |θ| to the next bfloat16."""
    size = θ.detach().float().abs()
    bits = size.view(torch.int32)
    return torch.where(bits < 0x7F7F0000, ((bits + 0x10000).view(torch.float32) - size) / 2, 2.0**119)


def pair(*shapes: tuple[int, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The same numbers as bfloat16 and as float32."""
    generator = torch.Generator().manual_seed(0)
    narrow = [nn.Parameter(torch.randn(shape, generator=generator).bfloat16()) for shape in shapes]
    for param in narrow:
        if param.dim() == 4:
            param.data = param.data.to(memory_format=torch.channels_last)
    return narrow, [nn.Parameter(param.detach().float()) for param in narrow]


SHAPES = [(90, 60), (16, 30, 4, 4), (7,), ()]


def side_by_side(
    narrow: list[nn.Parameter],
    one: Callable[[], Any],
    wide: list[nn.Parameter],
    two: Callable[[], Any],
    steps: range,
) -> None:
    """The same steps of both, by gradients of bfloat16."""
    for step in steps:
        give_gradients(narrow, step)
        for p, q in zip(narrow, wide, strict=True):
            q.grad = p.grad.float()
        one()
        two()


def assert_same(optimizer: SGDSaI, narrow: list[nn.Parameter], wide: list[nn.Parameter]) -> None:
    for p, q in zip(narrow, wide, strict=True):
        low = optimizer.state[p]["compensation"]
        assert p.dtype == torch.bfloat16
        assert torch.equal(joined(p, low).view(torch.int32), q.detach().view(torch.int32))
        assert p.numel() == 1 or low.unique().numel() > 1
        off = (q.detach() - p.detach().float()).abs()
        assert (off <= half_an_ulp(p)).all()  # the model has the nearest bfloat16


@pytest.mark.parametrize(
    "options",
    [{}, {"split": 2}, {"maximize": True, "lr": torch.tensor(0.3)}],
    ids=["plain", "split", "maximize"],
)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", EAGER)
def test_trains_as_a_float32_bit_for_bit(way: str, state: str, options: dict[str, Any]) -> None:
    narrow, wide = pair(*(SHAPES[:2] if "split" in options else SHAPES))
    options = {"lr": 0.3, "weight_decay": 0.1, **STATES[state], **options}
    asked, like = EAGER[way]
    one = SGDSaI(narrow, rounding="kahan", **options, **asked)
    two = SGDSaI(wide, **options, **like)
    side_by_side(narrow, one.step, wide, two.step, range(8))
    assert_same(one, narrow, wide)
    for p, q in zip(narrow, wide, strict=True):
        for key, value in two.state[q].items():
            assert torch.equal(torch.as_tensor(one.state[p][key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("released", [False, True], ids=["step", "gradient_release"])
def test_kernels_train_as_a_float32_bit_for_bit(
    state: str, released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from tests.update.test_triton_launch import load_kernel

    load_kernel(monkeypatch, interpret=True)
    narrow, wide = pair(*SHAPES[:3])
    options = {"lr": 0.3, "weight_decay": 0.1, "fused": True, **STATES[state]}
    one, two = SGDSaI(narrow, rounding="kahan", **options), SGDSaI(wide, **options)
    if released:
        for params, optimizer in ((narrow, one), (wide, two)):
            model = nn.Module()
            model.weights = nn.ParameterList(params)
            gradient_release(model, optimizer)
    for step in range(4):
        give_gradients(narrow, step)
        gradients = [param.grad for param in narrow]
        for params, optimizer in ((narrow, one), (wide, two)):
            optimizer.zero_grad()
            products = [(p * g.to(p)).sum() for p, g in zip(params, gradients, strict=True)]
            torch.stack(products).sum().backward()
            optimizer.step()
    assert_same(one, narrow, wide)


@pytest.mark.skipif(not torch._dynamo.is_dynamo_supported(), reason="torch.compile does not run here")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("state", ["fp32 m", "8-bit m"])
def test_compiled_trains_as_a_float32_bit_for_bit(state: str, backend: str) -> None:
    """The Inductor keeps in float32 what was written in 16 bits: of bits it knows no others."""
    narrow, wide = pair(*SHAPES[:3])
    options = {"lr": 0.3, "weight_decay": 0.1, **STATES[state]}
    one, two = SGDSaI(narrow, rounding="kahan", **options), SGDSaI(wide, **options)
    torch._dynamo.reset()
    steps = [torch.compile(optimizer.step, backend=backend) for optimizer in (one, two)]
    side_by_side(narrow, steps[0], wide, steps[1], range(4))
    assert_same(one, narrow, wide)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", EAGER)
def test_a_constant_move_of_few_millionths_arrives(way: str, dtype: torch.dtype) -> None:
    """3e-6 of the weight in each of 2000 steps; a compensation in bfloat16 lost 93 % of it."""
    param = nn.Parameter(torch.full((300,), 1.1, dtype=dtype))
    optimizer = SGDSaI([param], lr=3e-6 * 1.1, scale="sqrt_d", rounding="kahan", **EAGER[way][0])
    before = param[0].item()
    for _ in range(2000):
        param.grad = torch.ones_like(param)
        optimizer.step()
    after = exactly(param.detach(), optimizer.state[param]["compensation"])
    asked = 2000 * 3e-6 * 1.1
    least = 0.999 if dtype == torch.bfloat16 else 0.99
    assert (before - after).min().item() > least * asked
    assert (before - after).max().item() < 1.02 * asked  # in float32 a step is 28 units of 27.7


@pytest.mark.parametrize(("dtype", "arrives"), [(torch.bfloat16, True), (torch.float16, False)], ids=str)
def test_a_move_below_half_of_the_smallest_float16(dtype: torch.dtype, arrives: bool) -> None:
    """Of 2e-8: what rounding a float16 loses is a float16 too, a multiple of 6e-8."""
    param = nn.Parameter(torch.full((300,), 2.0**-7, dtype=dtype))
    optimizer = SGDSaI([param], lr=2e-8, scale="sqrt_d", rounding="kahan")
    for _ in range(100):
        param.grad = torch.ones_like(param)
        optimizer.step()
    moved = 2.0**-7 - exactly(param.detach(), optimizer.state[param]["compensation"])
    torch.testing.assert_close(moved, torch.full((300,), 2e-6 if arrives else 0.0), rtol=0.02, atol=0)


def test_decay_by_millionths_is_that_of_a_float32() -> None:
    """By 2e-6 in each of 20,000 steps: to 0.9608 of it, where a compensation in bfloat16 left 0.9990."""
    narrow, wide = pair((40,))
    options = {"lr": 2e-3, "weight_decay": 1e-3, "scale": "sqrt_d"}
    optimizer = SGDSaI(narrow, rounding="kahan", **options)
    narrow[0].grad = torch.zeros_like(narrow[0])
    start = narrow[0].detach().float()
    exact = wide[0].detach()
    for _ in range(20_000):
        optimizer.step()
        exact.mul_(1 - 2e-3 * 1e-3)
    assert_same(optimizer, narrow, wide)
    torch.testing.assert_close(exact / start, torch.full_like(start, math.exp(-0.04)), rtol=2e-3, atol=0)


@pytest.mark.parametrize("low", EXTREME)
def test_every_number_and_a_compensation_that_does_not_fit(low: int) -> None:
    """A model may be pruned, or given other weights, between two steps: at most half a unit is off."""
    exact = exactly(EVERY, torch.full_like(EVERY, low, dtype=torch.int16))
    wide = EVERY.float()
    assert torch.equal(exact.isnan(), wide.isnan())
    assert torch.equal(exact.isinf(), wide.isinf())
    finite = wide.isfinite()
    assert torch.equal(exact.signbit()[finite], wide.signbit()[finite])
    off = (exact - wide).abs()[finite]
    assert (off <= half_an_ulp(EVERY)[finite]).all()
    if low == 0:
        assert torch.equal(exact.view(torch.int32), wide.view(torch.int32))


@pytest.fixture(params=["quantized", "widened", "kernel"])
def update(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Each way to step such parameters; the kernel by Triton's interpreter."""
    if request.param == "kernel":
        pytest.importorskip("triton")
        from sgd_sai.update import triton_launch
        from tests.update.test_triton_launch import load_kernel

        load_kernel(monkeypatch, interpret=True)
        return triton_launch.update
    return {"quantized": quantized.update, "widened": widened.update}[request.param]


STILL: dict[str, Any] = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "maximize": False}


@pytest.mark.parametrize("low", EXTREME)
def test_a_step_that_moves_nothing_leaves_every_number(update: Callable[..., None], low: int) -> None:
    """Zeros with their sign, infinities, denormals; also beside a compensation that does not fit."""
    numbers = EVERY
    if update.__module__ == "sgd_sai.update.triton_launch":  # its interpreter reads a denormal as 0
        numbers = EVERY[(EVERY == 0) | ~(EVERY.abs() < torch.finfo(torch.bfloat16).tiny)]
    θ, still = numbers.clone(), torch.zeros_like(numbers)
    held = torch.full_like(numbers, low, dtype=torch.int16)
    for step in range(2):
        update([θ], [still], [None], [0.7], roundings=[held], step=step, **STILL)
        same = ~numbers.isnan()
        assert torch.equal(θ.view(torch.int16)[same], numbers.view(torch.int16)[same])
        assert torch.equal(θ.isnan(), numbers.isnan())


def test_rounds_halves_away_from_zero_and_keeps_all_of_a_float32() -> None:
    """Of every bfloat16 and the float32s around it, up to that which becomes an infinity."""
    for low in EXTREME:
        exact = joined(EVERY, torch.full_like(EVERY, low, dtype=torch.int16))
        exact = exact[exact.isfinite()]
        θ, held = torch.empty(exact.shape, dtype=torch.bfloat16), torch.empty(exact.shape, dtype=torch.int16)
        round_to(θ, exact.clone(), held, 0)
        beyond = exact.abs() >= OVERFLOWS
        assert torch.equal(θ.isinf(), beyond)
        kept = exactly(θ, held)
        assert torch.equal(kept.view(torch.int32)[~beyond], exact.view(torch.int32)[~beyond])
        assert torch.equal(kept[beyond], exact[beyond].sign() * torch.inf)
        if low == -(1 << 15):
            assert (held[~beyond] == low).all()
            assert (θ.float().abs() > exact.abs()).all()


def test_what_is_no_number_stays_none_and_nothing_else_becomes_it(update: Callable[..., None]) -> None:
    """Whatever its bits: half a unit added to those could make a zero of them."""
    bits = [0x7FFFFFFF, -1, 0x7FC00000, -0x400000, 0x7F80, 0x7F800001, -0x8000]
    g = torch.zeros(600)
    nans = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    g[300 : 300 + len(bits)] = nans
    bad = g.isnan()
    assert bad.sum() == 6
    g[10], g[11] = torch.inf, -torch.inf
    θ = torch.linspace(-3, 3, 600).bfloat16()
    held, before = torch.zeros(600, dtype=torch.int16), θ.clone()
    for step in range(3):
        update([θ], [g], [None], [0.7], roundings=[held], step=step, **STILL)
        assert torch.equal(θ.isnan(), bad)
        assert θ[10] == -torch.inf
        assert θ[11] == torch.inf
        others = ~bad
        others[10:12] = False
        assert torch.equal(θ[others], before[others])
        g.zero_()


@pytest.mark.parametrize("value", [0.0, -0.0, 2.0, torch.inf, 1e-40])
@pytest.mark.parametrize("way", EAGER)
def test_weights_that_are_set_between_steps(way: str, value: float) -> None:
    """They go on from there, and not from what they were: as by `p.mul_(mask)`, or with averaged weights."""
    narrow, _ = pair((90, 60))
    optimizer = SGDSaI(narrow, lr=0.3, scale="sqrt_d", rounding="kahan", **EAGER[way][0])
    for step in range(3):
        give_gradients(narrow, step)
        optimizer.step()
    low = optimizer.state[narrow[0]]["compensation"]
    assert (low < 0).any()
    assert (low > 0).any()
    with torch.no_grad():
        narrow[0].fill_(value)
    set_to = narrow[0].detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert torch.equal(narrow[0].detach(), set_to)
    for group in optimizer.param_groups:
        group.update(lr=0.1, momentum=0.0)
    give_gradients(narrow, 3)
    expected = set_to.float() - 0.1 * narrow[0].grad.float()
    optimizer.step()
    if math.isinf(value):
        assert (narrow[0] == value).all()
        return
    exact = joined(narrow[0], low)
    assert ((exact - expected).abs() <= half_an_ulp(set_to) + 1e-6 * expected.abs()).all()


def saved_and_loaded(optimizer: SGDSaI) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", EAGER)
def test_resumes_bit_for_bit(way: str) -> None:
    narrow, wide = pair(*SHAPES)
    asked, like = EAGER[way]
    one, two = SGDSaI(narrow, lr=0.3, rounding="kahan", **asked), SGDSaI(wide, lr=0.3, **like)
    side_by_side(narrow, one.step, wide, two.step, range(3))
    resumed = [nn.Parameter(param.detach().clone()) for param in narrow]
    other = SGDSaI(resumed, lr=9.0, rounding="kahan", **asked)
    other.load_state_dict(saved_and_loaded(one))
    for param in resumed:
        low = other.state[param]["compensation"]
        assert low.dtype == torch.int16
        assert low.stride() == param.stride()
    side_by_side(resumed, other.step, wide, two.step, range(3, 6))
    assert_same(other, resumed, wide)


@pytest.mark.parametrize("model_first", [True, False], ids=["model first", "optimizer first"])
def test_goes_on_from_a_compensation_in_bfloat16(model_first: bool) -> None:
    """As states were saved before: what rounding had lost, to its first eight bits."""
    narrow, wide = pair(*SHAPES)
    one = SGDSaI(narrow, lr=0.3, rounding="kahan", **FOR_LOOP)
    two = SGDSaI(wide, lr=0.3, **FOR_LOOP)
    side_by_side(narrow, one.step, wide, two.step, range(3))
    saved = saved_and_loaded(one)
    for number, (p, q) in enumerate(zip(narrow, wide, strict=True)):
        lost = (q.detach() - p.detach().float()).bfloat16()
        saved["state"][number]["compensation"] = lost
        start = p.detach().float()
        low = (start + lost).view(torch.int32) - start.view(torch.int32)
        assert low.abs().max() <= 0x8000
        q.data = joined(p, low.clamp_max(0x7FFF).to(torch.int16))
    resumed = [nn.Parameter(torch.randn_like(param)) for param in narrow]
    other = SGDSaI(resumed, lr=0.3, rounding="kahan", **FOR_LOOP)
    for what in (True, False) if model_first else (False, True):
        if what:
            for p, q in zip(resumed, narrow, strict=True):
                p.data.copy_(q.detach())
        else:
            other.load_state_dict(saved)
    side_by_side(resumed, other.step, wide, two.step, range(3, 6))
    assert_same(other, resumed, wide)


@pytest.mark.parametrize("by", ["torch.optim", "hand"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_state_that_was_cast_to_floats_loses_nothing(dtype: torch.dtype, by: str) -> None:
    """As torch.optim's own `load_state_dict` casts all of it, to the parameter's dtype."""
    narrow, wide = pair(*SHAPES)
    one, two = SGDSaI(narrow, lr=0.3, momentum=0.0, rounding="kahan"), SGDSaI(wide, lr=0.3, momentum=0.0)
    side_by_side(narrow, one.step, wide, two.step, range(3))
    saved = saved_and_loaded(one)
    other = SGDSaI(narrow, lr=0.3, momentum=0.0, rounding="kahan")
    if by == "hand":
        for entries in saved["state"].values():
            entries["compensation"] = entries["compensation"].to(dtype)
        other.load_state_dict(saved)
    else:
        for param in narrow:
            param.data = param.data.to(dtype)
        torch.optim.Optimizer.load_state_dict(other, saved)
        for param in narrow:
            param.data = param.data.bfloat16()
    assert_same(other, narrow, wide)


@pytest.mark.parametrize("amount", [-1234.0, 0.1, 2.0, 1e-3, math.nan])
def test_what_cannot_be_a_compensation_does_no_harm(amount: float) -> None:
    """Given by some tool: at most half a unit is added."""
    narrow, _ = pair((90, 60), (7,))
    optimizer = SGDSaI(narrow, lr=0.3, scale="sqrt_d", rounding="kahan")
    give_gradients(narrow, 0)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0
    for param in narrow:
        optimizer.state[param]["compensation"] = torch.full_like(param, amount)
    before = [param.detach().clone() for param in narrow]
    optimizer.step()
    for param, was in zip(narrow, before, strict=True):
        assert torch.equal(param.detach(), was)
        exact = joined(was, optimizer.state[param]["compensation"])
        assert ((exact - was.float()).abs() <= half_an_ulp(was)).all()


def through_a_distributed_checkpoint(
    model: nn.Module, optimizer: SGDSaI, other: nn.Module, resumed: SGDSaI, folder: Path
) -> None:
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=folder, no_dist=True)
    state = get_optimizer_state_dict(other, resumed)
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    set_optimizer_state_dict(other, resumed, state)


def through_a_file(
    model: nn.Module, optimizer: SGDSaI, other: nn.Module, resumed: SGDSaI, folder: Path
) -> None:
    """With the dtypes in which it was saved."""
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=folder, no_dist=True)
    dcp_to_torch_save(folder, folder / "state.pt")
    set_optimizer_state_dict(other, resumed, torch.load(folder / "state.pt", weights_only=True))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model_first", [True, False], ids=["model first", "optimizer first"])
def test_distributed_checkpoints_of_another_dtype(
    of: torch.dtype, to: torch.dtype, model_first: bool, tmp_path: Path
) -> None:
    """torch would cast one to the other, but finds that sizes differ."""

    def made(dtype: torch.dtype, seed: int) -> tuple[nn.Linear, SGDSaI]:
        torch.manual_seed(seed)
        model = nn.Linear(90, 60).to(dtype)
        optimizer = SGDSaI(model.named_parameters(), lr=0.3, rounding="kahan", **FOR_LOOP)
        for step in range(2):
            give_gradients(list(model.parameters()), step)
            optimizer.step()
        return model, optimizer

    (model, optimizer), (other, resumed) = made(of, 0), made(to, 1)
    if model_first:
        other.load_state_dict(model.state_dict())
    if of == to:
        through_a_distributed_checkpoint(model, optimizer, other, resumed, tmp_path)
    else:
        with pytest.raises(dcp.api.CheckpointException, match=r"Size mismatch .*compensation"):
            through_a_distributed_checkpoint(model, optimizer, other, resumed, tmp_path)
        through_a_file(model, optimizer, other, resumed, tmp_path)
    other.load_state_dict(model.state_dict())
    kept = {p: exactly(p.detach(), optimizer.state[p]["compensation"]).clone() for p in model.parameters()}
    give_gradients(list(other.parameters()), 2)
    resumed.param_groups[0]["lr"] = 0.0
    resumed.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        found = exactly(q.detach(), resumed.state[q]["compensation"])
        if of == to:
            assert torch.equal(found, kept[p])
        else:  # a float16 has 3 bits more than a bfloat16, and a compensation in float16 is rounded itself
            eps = 2**-18 if to == torch.float16 else 2**-8
            torch.testing.assert_close(found, kept[p], rtol=eps, atol=2**-24)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_of_a_compensation_in_bfloat16(tmp_path: Path) -> None:
    """It was one number for each element, and is two bytes now: torch says so, and its file is read."""
    narrow, _ = pair((90, 60))
    model = nn.ParameterList(narrow)
    optimizer = SGDSaI(model.named_parameters(), lr=0.3, rounding="kahan")
    give_gradients(narrow, 0)
    optimizer.step()
    exact = exactly(narrow[0].detach(), optimizer.state[narrow[0]]["compensation"])
    lost = (exact - narrow[0].detach().float()).bfloat16()
    older = get_optimizer_state_dict(model, optimizer)
    older["state"]["0"]["compensation"] = lost
    dcp.save(older, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(dcp.api.CheckpointException, match=r"Size mismatch .*compensation"):
        dcp.load(get_optimizer_state_dict(model, optimizer), checkpoint_id=tmp_path, no_dist=True)
    dcp_to_torch_save(tmp_path, tmp_path / "state.pt")
    set_optimizer_state_dict(model, optimizer, torch.load(tmp_path / "state.pt", weights_only=True))
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    found = exactly(narrow[0].detach(), optimizer.state[narrow[0]]["compensation"])
    torch.testing.assert_close(found - narrow[0].detach().float(), lost.float(), rtol=0, atol=2**-23)


def test_a_model_that_is_cast_keeps_what_rounding_has_lost() -> None:
    """To float16, whose compensation is another, and back."""
    narrow, wide = pair((90, 60), (7,))
    model = nn.ParameterList(narrow)
    one, two = SGDSaI(narrow, lr=0.3, rounding="kahan"), SGDSaI(wide, lr=0.3, **FOR_LOOP)
    side_by_side(narrow, one.step, wide, two.step, range(3))
    for dtype in (torch.float16, torch.bfloat16):
        model.to(dtype)
        for optimizer in (one, two):
            optimizer.param_groups[0]["lr"] = 0.0
        one.step()
        for p, q in zip(narrow, wide, strict=True):
            held = one.state[p]["compensation"]
            assert held.dtype == (torch.int16 if dtype == torch.bfloat16 else torch.float16)
            exact = exactly(p.detach(), held)
            # A float16 has 3 bits more than a bfloat16, and loses them on the way back.
            eps = 2**-18 if dtype == torch.float16 else 2**-8
            torch.testing.assert_close(exact, q.detach(), rtol=eps, atol=2**-24)


@pytest.mark.parametrize("bits", ["codes", "amounts"])
def test_a_given_compensation_of_any_size(bits: str) -> None:
    """Converted, none is over half a unit of any number."""
    finite = EVERY[EVERY.isfinite()]
    for size in (1, 3, 300, 30_000) if bits == "codes" else (2**-8, -(2**-10), 1e-3, 2.0**-133):
        given = torch.full_like(finite, size) if bits == "codes" else (finite.double() * size).bfloat16()
        low = compensation_of(finite, given)
        assert low.dtype == torch.int16
        exact = exactly(finite, low)
        assert ((exact - finite.float()).abs() <= half_an_ulp(finite)).all()
        if bits == "amounts":
            whole = finite.float() + given.float()
            fits = (given.float().abs() < half_an_ulp(finite) / 2) & (finite != 0)
            assert torch.equal(exact[fits], whole[fits])
