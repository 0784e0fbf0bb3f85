"""Fewer bytes: what momentum in 16 and 8 bits and the roundings of 16-bit parameters keep."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from optimizer_info import WAYS, Watch, give_gradients
from sgd_sai import SGDSaI, gradient_release
from sgd_sai.quantized import BLOCK, Momentum8, Momentum16, create_momentum8
from sgd_sai.rounding import PERIOD, Noise, nearest_float16, random_bits, round_to
from sgd_sai.update.pieces import pieces

STATES: dict[str, dict[str, Any]] = {
    "bf16": {"state_dtype": torch.bfloat16},
    "fp16": {"state_dtype": torch.float16},
    "8bit": {"state_dtype": "8bit"},
}
ROUNDINGS: dict[str, dict[str, Any]] = {
    "stochastic": {"rounding": "stochastic"},
    "kahan": {"rounding": "kahan"},
    "8bit, kahan": {"rounding": "kahan", "state_dtype": "8bit"},
    "8bit, stochastic": {"rounding": "stochastic", "state_dtype": "8bit"},
}


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Large enough for 8 bits, one not a multiple of 256, one in another memory order, and a small one."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(90, 60), (16, 30, 4, 4), (7,)]
    params = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    params[1].data = params[1].data.to(memory_format=torch.channels_last)
    return params


def empty_momentum(like: torch.Tensor) -> Momentum8:
    state: dict[str, Any] = {}
    create_momentum8(state, like, 1)
    return Momentum8(state["momentum_buffer"], state["momentum_absmax"])


def test_bytes_of_the_state() -> None:
    """4, 2, about 1 and 0 bytes an element, and a float for each block."""
    expected = {"fp32": 4.0, "bf16": 2.0, "8bit": 1 + 4 / BLOCK, "none": 0.0}
    given = {"fp32": {}, "bf16": STATES["bf16"], "8bit": STATES["8bit"], "none": {"momentum": 0.0}}
    for name, options in given.items():
        param = nn.Parameter(torch.randn(512, 256))
        optimizer = SGDSaI([param], **options)
        give_gradients([param], 0)
        optimizer.step()
        held = sum(v.nbytes for v in optimizer.state[param].values() if isinstance(v, torch.Tensor))
        assert held / param.numel() == expected[name]


def test_8_bits_are_within_a_code_of_what_they_hold() -> None:
    """|m̂ − m| ≤ half a step of the square law, zeros stay zeros, the largest of a block is exact."""
    torch.manual_seed(0)
    m = torch.randn(40, 999) * torch.exp(torch.randn(40, 999))
    m[3] = 0.0
    held = empty_momentum(m)
    held.write(m)
    back = held.read()
    a = held.absmax.repeat_interleave(BLOCK)[: m.numel()].view_as(m)
    step = a * ((m.abs() / a.clamp_min(1e-30)).sqrt() / 127 + 0.25 / 127**2)
    assert ((back - m).abs() <= step * 1.0001).all()
    assert (back[3] == 0).all()
    largest = m.view(-1)[: 100 * BLOCK].view(-1, BLOCK).abs().amax(1)
    torch.testing.assert_close(back.view(-1)[: 100 * BLOCK].view(-1, BLOCK).abs().amax(1), largest)


def test_8_bits_on_an_ema_of_noisy_gradients() -> None:
    """The figure in precision.py: 1.8 % for the square law, 4.2 % for a linear code of the same blocks."""
    generator = torch.Generator().manual_seed(0)
    size = torch.exp(torch.randn(BLOCK * 200, generator=generator))
    mean = 0.3 * size * torch.randn(BLOCK * 200, generator=generator)
    exact = torch.zeros_like(size)
    square, linear = empty_momentum(size), torch.zeros_like(size)
    error = {"square": 0.0, "linear": 0.0}
    norm = 0.0
    for step in range(200):
        g = mean + size * torch.randn(size.shape, generator=generator)
        exact = torch.lerp(exact, g, 0.1)
        held, other = torch.lerp(square.read(), g, 0.1), torch.lerp(linear, g, 0.1)
        if step > 50:
            error["square"] += (held - exact).square().sum().item()
            error["linear"] += (other - exact).square().sum().item()
            norm += exact.square().sum().item()
        square.write(held)
        a = other.view(-1, BLOCK).abs().amax(1, keepdim=True)
        linear = ((other.view(-1, BLOCK) / a * 127).round() / 127 * a).view(-1)
    assert (error["square"] / norm) ** 0.5 == pytest.approx(0.018, abs=0.002)
    assert (error["linear"] / norm) ** 0.5 == pytest.approx(0.042, abs=0.005)


def test_pieces_of_a_tensor_are_all_of_it() -> None:
    for order in (torch.contiguous_format, torch.channels_last):
        t = torch.arange(2.0 * 3 * 40 * 50).view(2, 3, 40, 50).to(memory_format=order)
        cut = list(pieces(1000, t, t.clone(memory_format=torch.preserve_format), None))
        assert len(cut) == 12
        assert torch.equal(torch.cat([p for p, _, _ in cut]).sort().values, torch.arange(12000.0))
        assert all(torch.equal(p, q) for p, q, _ in cut)


@pytest.mark.parametrize("options", [*STATES.values()], ids=[*STATES])
def test_narrow_state_follows_float32(options: dict[str, Any]) -> None:
    """20 steps of fresh gradients: the distance to the float32 run stays a small part of the way."""
    start, narrow = parameters(), parameters()
    one, two = SGDSaI(start, lr=0.1, weight_decay=0.1), SGDSaI(narrow, lr=0.1, weight_decay=0.1, **options)
    for step in range(20):
        give_gradients(start, step)
        give_gradients(narrow, step)
        one.step()
        two.step()
    for p, q, origin in zip(start, narrow, parameters(), strict=True):
        assert (p - q).norm() <= 0.03 * (p - origin).norm()


@pytest.mark.parametrize("options", [*ROUNDINGS.values()], ids=[*ROUNDINGS])
def test_small_updates_add_up_where_plain_rounding_stalls(options: dict[str, Any]) -> None:
    """Steps of a 2000th of θ, an eighth of what bfloat16 resolves: nearest never moves, these do."""
    moved = {}
    for name, of in {"nearest": {}, "asked": options}.items():
        torch.manual_seed(0)
        p = nn.Parameter(torch.ones(100, 100, dtype=torch.bfloat16))
        optimizer = SGDSaI([p], lr=5e-4, scale="sqrt_d", **of)
        for _ in range(400):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved[name] = 1 - p.float().mean().item()
    assert moved["nearest"] == 0.0
    assert moved["asked"] == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_bf16_training_follows_float32(rounding: str) -> None:
    """A regression in pure bfloat16 ends near the loss of the float32 run; plain rounding does not."""

    def loss_of(dtype: torch.dtype, **options: Any) -> float:
        torch.manual_seed(0)
        x = torch.randn(256, 32)
        target = torch.randn(32, 4)
        w = nn.Parameter(torch.zeros(4, 32, dtype=dtype))
        optimizer = SGDSaI([w], lr=3e-3, **options)
        for _ in range(1500):
            w.grad = (2 * (x @ w.detach().float().T - x @ target).T @ x / len(x)).to(dtype)
            optimizer.step()
        return (x @ w.detach().float().T - x @ target).square().mean().item()

    exact, plain = loss_of(torch.float32), loss_of(torch.bfloat16)
    asked = loss_of(torch.bfloat16, rounding=rounding)
    assert asked < 0.3 * plain
    assert asked < exact + 2e-3


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    """Over elements in one step, and over steps at one element."""
    exact = torch.full((200_000,), 1.0 + 2**-7 * 0.3)
    rounded = torch.empty_like(exact, dtype=torch.bfloat16)
    up = torch.zeros_like(exact)
    for step in range(100):
        round_to(rounded, exact, Noise(3), step)
        assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
        assert ((rounded > 1).float().mean() - 0.3).abs() < 6 * (0.3 * 0.7 / PERIOD) ** 0.5
        up += rounded > 1
    share = up / 100
    assert share.mean() == pytest.approx(0.3, abs=3e-4)
    assert share.std() == pytest.approx((0.3 * 0.7 / 100) ** 0.5, rel=0.02)  # as of independent draws


LARGEST, SMALLEST = torch.finfo(torch.bfloat16).max, 2.0**-133  # of bfloat16; the smallest is a denormal
SPECIAL = [torch.inf, -torch.inf, 0.0, -0.0, 1.5, LARGEST, -LARGEST, SMALLEST, -SMALLEST, 3 * SMALLEST]
PAYLOADS = [1, 0x8000, 0xFFFF, 0x10000, 0x400000, 0x7FFFFE, 0x7FFFFF]


@pytest.mark.parametrize("sign", [0, -1 << 31])
def test_stochastic_rounding_of_what_needs_none(sign: int) -> None:
    """The sign of a zero stays, and NaN, whatever its bits: the noise must not carry it over to a zero."""
    special = torch.tensor(SPECIAL)
    nans = torch.tensor([sign | 0x7F800000 | payload for payload in PAYLOADS], dtype=torch.int32)
    for step in range(50):
        out = torch.empty(len(SPECIAL), dtype=torch.bfloat16)
        round_to(out, special, Noise(0), step)
        assert torch.equal(out.view(torch.int16), special.bfloat16().view(torch.int16))
        out = torch.empty(len(PAYLOADS), dtype=torch.bfloat16)
        round_to(out, nans.view(torch.float32), Noise(0), step)
        assert out.isnan().all()


@pytest.mark.parametrize("exact", [0.25 * SMALLEST, -1.75 * SMALLEST, (1 - 2**-9) * 2**-126])
def test_stochastic_rounding_of_denormals(exact: float) -> None:
    wide = torch.full((200_000,), exact)
    rounded = torch.empty_like(wide, dtype=torch.bfloat16)
    round_to(rounded, wide, Noise(1), 5)
    of = rounded.double() / SMALLEST
    assert set(of.unique().tolist()) == {math.floor(exact / SMALLEST), math.ceil(exact / SMALLEST)}
    assert of.mean().item() == pytest.approx(exact / SMALLEST, abs=0.006)


def test_stochastic_rounding_between_the_largest_number_and_infinity() -> None:
    """Beyond the largest bfloat16 the neighbour is an infinity, as to nearest; up to there all is finite."""
    beyond = torch.full((10_000,), torch.finfo(torch.float32).max)
    out = torch.empty_like(beyond, dtype=torch.bfloat16)
    round_to(out, beyond, Noise(0), 1)
    assert set(out.tolist()) <= {LARGEST, math.inf}
    round_to(out, torch.full_like(beyond, LARGEST), Noise(0), 1)
    assert set(out.tolist()) == {LARGEST}


def test_nearest_float16_is_what_a_cast_gives() -> None:
    """Of every number of 16 bits, of what lies halfway to the next, and of their neighbours in float32."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16).float()
    every = every[every.isfinite() & (every.abs() < torch.finfo(torch.float16).max)]
    size = every.abs().sort().values
    halfway = (size[:-1] + size[1:]) / 2
    halfway = torch.cat([halfway, -halfway])
    given = torch.cat([every, halfway, *(halfway.nextafter(torch.tensor(to)) for to in (9e9, -9e9))])
    cast = given.half().float()
    assert (cast != given).any()
    assert torch.equal(nearest_float16(given), cast)


def test_random_bits_are_uniform_and_independent() -> None:
    """Of the elements, of parameters, of steps near and far, and of groups, which begin 2³² apart."""
    like = torch.empty(PERIOD // 2)
    keys = [
        (Noise(number, first), step)
        for number in (0, 1)
        for first in (0, PERIOD // 2)
        for step in (1, 2, 1 << 32)
    ]
    drawn = torch.stack([random_bits(like, noise, step) for noise, step in keys]).double()
    assert drawn.mean(1).sub(0xFFFF / 2).abs().max() < 6 * 2**16 / (12 * like.numel()) ** 0.5
    bits = torch.stack([(drawn.int() >> bit) & 1 for bit in range(16)], dim=-1).double()
    assert bits.mean(1).sub(0.5).abs().max() < 6 * 0.5 / like.numel() ** 0.5
    # The even elements beside the odd ones: two of a pair share a hash.
    related = torch.corrcoef(torch.cat((drawn[:, ::2], drawn[:, 1::2]))).fill_diagonal_(0.0)
    assert related.abs().max() < 6 / (like.numel() / 2) ** 0.5
    assert torch.equal(random_bits(like, Noise(0), torch.tensor(7)), random_bits(like, Noise(0), 7))


FEW = {"8bit": "8bit", "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize(
    ("momentum", "way"),
    [(0.9, "default"), (0.9, "foreach"), (0.9, "for-loop"), (0.99, "default"), (0.999, "default")],
)
@pytest.mark.parametrize("state_dtype", FEW)
def test_a_momentum_forgets_as_in_float32(state_dtype: str, momentum: float, way: str) -> None:
    """Gradients that become zero beside one that stays: to nearest, weights would move on for ever."""
    there = torch.zeros(64, 256)
    there[:, 0] = 1.0
    then = there.clone()
    there[:, 1:] = torch.linspace(0.01, 0.9, 255)
    there, then = there * 2e-5, then * 2e-5  # near where float16 has denormals
    after = {}
    for name, options in {"exact": {}, "asked": {"state_dtype": FEW[state_dtype]}}.items():
        param = nn.Parameter(torch.zeros(64, 256))
        optimizer = SGDSaI([param], lr=1.0, momentum=momentum, scale="sqrt_d", **options, **WAYS[way])
        for step in range(20 + int(6 / (1 - momentum))):
            param.grad = there if step < 20 else then
            optimizer.step()
        after[name] = param.detach()[:, 1:].mean(0)
    ratio = after["asked"] / after["exact"]
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert (ratio - 1).abs().max() < 0.3  # of 64 elements each


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("state_dtype", FEW)
def test_a_momentum_forgets_while_lr_is_0(state_dtype: str, released: bool) -> None:
    """As of a group that waits. With the same bits in each step, momenta would stay where those lead."""
    torch.manual_seed(0)
    net = nn.Linear(256, 64, bias=False)
    options: dict[str, Any] = {"momentum": 0.99, "scale": "sqrt_d", "state_dtype": FEW[state_dtype]}
    optimizer = SGDSaI(net.parameters(), lr=1.0, **options)
    if released:
        gradient_release(net, optimizer)
    inputs = torch.linspace(0.01, 0.9, 256)
    for step in range(301):
        optimizer.param_groups[0]["lr"] = float(step == 0)
        net(inputs).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        inputs[1:] = 0.0
        inputs[0] = 1.0
    state = optimizer.state[net.weight]
    few: Momentum8 | Momentum16 = Momentum16(state["momentum_buffer"], Noise(0))
    if state_dtype == "8bit":
        few = Momentum8(state["momentum_buffer"], state["momentum_absmax"])
    kept = few.read()[:, 1:].mean() / torch.linspace(0.01, 0.9, 256)[1:].mean()
    assert kept == pytest.approx(0.99**300, abs=0.01)


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("state_dtype", FEW)
def test_a_quadratic_ends_where_it_does_in_float32(state_dtype: str, momentum: float) -> None:
    def loss(**options: Any) -> float:
        torch.manual_seed(0)
        curvature = torch.logspace(-2, 0, 4096)
        param = nn.Parameter(torch.randn(4096))
        optimizer = SGDSaI([param], lr=0.05, momentum=momentum, scale="sqrt_d", **options)
        for _ in range(int(20 / (1 - momentum))):
            param.grad = curvature * param.detach() + 0.3 * torch.randn(4096)
            optimizer.step()
        return (curvature * param.detach() ** 2).mean().item()

    assert loss(state_dtype=FEW[state_dtype]) == pytest.approx(loss(), rel=0.15)


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_codes_are_right_in_the_mean(size: float) -> None:
    """Each is one of the two around the exact value."""
    torch.manual_seed(0)
    exact = torch.randn(4096) * size
    momentum = Momentum8(torch.empty(4096, dtype=torch.int8), torch.empty(16), Noise(3, 5))
    read = []
    for step in range(400):
        momentum.write(exact, step)
        read.append(momentum.read())
    drawn, exact = torch.stack(read).double(), exact.double()
    largest = momentum.absmax.repeat_interleave(BLOCK).double()
    level = (exact.abs() / largest).sqrt() * 127
    apart = (2 * level.ceil() + 1) / 127**2 * largest  # of two codes, at most
    assert ((drawn - exact).abs() <= apart).all()
    assert max(len(of.unique()) for of in drawn.T) == 2
    deviation = (apart * 0.5 + 1e-6 * largest) / 20  # of the mean of 400, at most
    off = (drawn.mean(0) - exact) / deviation
    assert off.abs().max() < 6
    assert off.mean().abs() < 6 / 64


def test_one_gradient_that_is_no_number_costs_one_weight() -> None:
    """As in float32, and not its whole block of 256."""
    for value in (math.nan, math.inf):
        params = [nn.Parameter(torch.ones(64, 256)) for _ in range(2)]
        optimizers = [
            SGDSaI([p], lr=0.1, state_dtype=kind) for p, kind in zip(params, (None, "8bit"), strict=True)
        ]
        for step in range(4):
            grad = torch.full((64, 256), 0.5)
            if step == 1:
                grad[7, 9] = value
            for param, optimizer in zip(params, optimizers, strict=True):
                param.grad = grad.clone()
                optimizer.step()
        exact, few = (param.detach() for param in params)
        assert (~few.isfinite()).nonzero().tolist() == (~exact.isfinite()).nonzero().tolist() == [[7, 9]]
        others = few.isfinite()
        torch.testing.assert_close(few[others], exact[others], rtol=0, atol=2e-3)


def test_a_part_draws_what_the_whole_draws_there() -> None:
    whole = random_bits(torch.empty(3000), Noise(5), 9)
    for first in (1200, 1201):
        for size in (1000, 1001):
            drawn = random_bits(torch.empty(size), Noise(5, first), 9)
            assert torch.equal(drawn, whole[first : first + size])


def test_replicas_round_alike_whatever_the_generators_do() -> None:
    """Those of DDP: torch's generators differ from rank to rank."""
    replicas = [parameters(torch.bfloat16) for _ in range(2)]
    for rank, params in enumerate(replicas):
        torch.manual_seed(rank)
        optimizer = SGDSaI(params, lr=0.1, rounding="stochastic")
        for step in range(3):
            give_gradients(params, step)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(*replicas, strict=True))


def test_a_count_of_steps_on_the_device_gives_the_same_bits() -> None:
    """With `capturable` the number of the step is a tensor, which a CUDA graph can raise. An int is saved."""
    one, two = parameters(torch.bfloat16), parameters(torch.bfloat16)
    options = {"lr": 0.1, "rounding": "stochastic"}
    plain, capturable = SGDSaI(one, **options), SGDSaI(two, **options, capturable=True)
    for step in range(3):
        for params, optimizer in ((one, plain), (two, capturable)):
            give_gradients(params, step)
            optimizer.step()
        assert isinstance(capturable.param_groups[0]["rounding_step"], torch.Tensor)
        saved = [
            optimizer.state_dict()["param_groups"][0]["rounding_step"] for optimizer in (plain, capturable)
        ]
        assert saved == [step + 1] * 2
        assert [type(count) for count in saved] == [int, int]
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))


def test_parts_of_a_parameter_are_rounded_as_the_whole() -> None:
    """Three equal parts, which have the same scale by this rule: one after the other they draw its bits."""
    whole, cut = (nn.Parameter(torch.ones(9, 500, dtype=torch.bfloat16)) for _ in range(2))
    options = {"lr": 1e-3, "rounding": "stochastic", "scale": "sqrt_d"}
    for param, split in ((whole, 1), (cut, 3)):
        param.grad = torch.ones_like(param)
        SGDSaI([param], split=split, **options).step()
    assert torch.equal(whole, cut)
    assert not torch.equal(whole[:3], whole[3:6])


def test_a_missing_gradient_leaves_the_bits_of_the_others() -> None:
    """They depend on the place in the group, whether those before it move or not."""
    both, alone = ([nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(2)] for _ in range(2))
    for params in (both, alone):
        optimizer = SGDSaI(params, lr=1e-3, rounding="stochastic")
        for step in range(3):
            give_gradients(params, step)
            if step and params is alone:
                params[0].grad = None
            optimizer.step()
    assert not torch.equal(both[0], alone[0])
    assert torch.equal(both[1], alone[1])


def test_a_step_draws_nothing_from_the_users_generators() -> None:
    params = parameters(torch.bfloat16)
    optimizer = SGDSaI(params, lr=0.1, rounding="stochastic", state_dtype="8bit")
    before = torch.get_rng_state()
    for step in range(2):
        for seed, param in enumerate(params):
            generator = torch.Generator().manual_seed(10 * step + seed)
            param.grad = torch.randn(param.shape, generator=generator).bfloat16()
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_asking_for_the_state_before_training_changes_no_rounding(lr: Any) -> None:
    """torch.distributed.checkpoint creates the state by a step with lr = 0, in which nothing is rounded."""
    nets = [nn.Linear(70, 70, bias=False, dtype=torch.bfloat16) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for asked, net in enumerate(nets):
        optimizer = SGDSaI(net.parameters(), lr=lr, weight_decay=0.1, rounding="stochastic")
        if asked:
            get_optimizer_state_dict(net, optimizer)
        for step in range(3):
            give_gradients(list(net.parameters()), step)
            optimizer.step()
    assert torch.equal(nets[0].weight, nets[1].weight)


def test_equal_places_in_two_groups_round_differently() -> None:
    params = [nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(3)]
    optimizer = SGDSaI([{"params": params[:2]}, {"params": params[2:]}], lr=1e-3, rounding="stochastic")
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert not torch.equal(params[0], params[1])
    assert not torch.equal(params[0], params[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [*STATES.values(), *ROUNDINGS.values()], ids=[*STATES, *ROUNDINGS])
def test_resumes_bit_for_bit(options: dict[str, Any], dtype: torch.dtype, tmp_path: Any) -> None:
    if options.get("rounding") == "stochastic" and dtype == torch.float16:
        pytest.skip("stochastic rounding is for bfloat16")
    whole = parameters(dtype)
    optimizer = SGDSaI(whole, lr=0.1, **options)

    def steps(which: range, params: list[nn.Parameter], of: SGDSaI) -> None:
        for step in which:
            give_gradients(params, step)
            of.step()

    steps(range(3), whole, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = [nn.Parameter(p.detach().clone()) for p in whole]
    other = SGDSaI(resumed)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(range(3, 6), whole, optimizer)
    steps(range(3, 6), resumed, other)
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))
    again = copy.deepcopy(other)
    assert again.state_dict()["param_groups"] == other.state_dict()["param_groups"]


@pytest.mark.filterwarnings("ignore:.*when another SGDSaI took:UserWarning")  # one of them is cut by hand
def test_split_blocks_in_8_bits_are_like_separate_ones() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(240, 70))
    thirds = [nn.Parameter(part.clone()) for part in whole.detach().chunk(3)]
    one, three = SGDSaI([whole], split=3, state_dtype="8bit"), SGDSaI(thirds, state_dtype="8bit")
    for _ in range(3):
        whole.grad = torch.randn(240, 70)
        for part, grad in zip(thirds, whole.grad.chunk(3), strict=True):
            part.grad = grad.clone()
        one.step()
        three.step()
    # They draw other bits; with other blocks of 256, scales would be others by more than a code.
    scales = torch.cat([three.state[part]["momentum_absmax"] for part in thirds])
    torch.testing.assert_close(one.state[whole]["momentum_absmax"], scales, rtol=0.02, atol=0)
    torch.testing.assert_close(whole.detach(), torch.cat(list(thirds)).detach(), rtol=0, atol=2e-3)


def test_complex_parameters_in_8_bits() -> None:
    torch.manual_seed(0)
    z = nn.Parameter(torch.randn(60, 50, dtype=torch.complex64))
    pairs = nn.Parameter(torch.view_as_real(z.detach()).clone())
    one, two = SGDSaI([z], state_dtype="8bit"), SGDSaI([pairs], state_dtype="8bit")
    for _ in range(3):
        z.grad = torch.randn_like(z)
        pairs.grad = torch.view_as_real(z.grad).clone()
        one.step()
        two.step()
    assert torch.equal(torch.view_as_real(z.detach()), pairs.detach())


def test_peak_memory_in_8_bits() -> None:
    """A step allocates some pieces of 1 MiB, not a copy of the parameter."""
    params = [nn.Parameter(torch.randn(4000, 1000, dtype=torch.bfloat16))]
    optimizer = SGDSaI(params, state_dtype="8bit", rounding="stochastic")
    for step in range(2):
        give_gradients(params, step)
        with Watch() as watch:
            optimizer.step()
    assert watch.peak <= 10 << 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dtype": torch.int8}, "state_dtype: given torch.int8; allowed: None, '8bit', torch.float64"),
        ({"state_dtype": "4bit"}, "state_dtype: given '4bit'"),
        ({"rounding": "up"}, "rounding: given 'up'; allowed: 'nearest', 'stochastic' or 'kahan'"),
        ({"rounding": "kahan", "differentiable": True}, "differentiable: given True with"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGDSaI(parameters(), **options)


def test_stochastic_rounding_of_float16_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"rounding: given 'stochastic' for parameter 0.* float16; allowed: 'kahan'"
    ):
        SGDSaI(parameters(torch.float16), rounding="stochastic")
