"""What runs on a GPU is what runs on the CPU, for every option that has code of its own there.

Those on "cpu" run everywhere: they say that the tests themselves are right.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sgd_sai import SGDSaI, gradient_release
from sgd_sai.gsnr import measure

SHAPES = [(64, 96), (33, 7), (3, 129, 130), (64,), (1,)]
LR = 0.1
STATES: dict[str, dict[str, Any]] = {
    "fp32 m": {},
    "bf16 m": {"state_dtype": torch.bfloat16},
    "fp16 m": {"state_dtype": torch.float16},
    "8-bit m": {"state_dtype": "8bit"},
    "no m": {"momentum": 0.0},
}
ROUNDINGS = ("nearest", "kahan", "stochastic")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Float16 cannot be rounded stochastically.
MIXES = [mix for mix in itertools.product(DTYPES, STATES, ROUNDINGS) if mix[::2] != ("fp16", "stochastic")]

every_mix = pytest.mark.parametrize(("dtype", "state", "rounding"), MIXES)
every_state = pytest.mark.parametrize("state", STATES)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def draw(seed: int, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> list[Tensor]:
    """Tensors of SHAPES: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]


def build(dtype: torch.dtype, device: Any, **options: Any) -> tuple[list[nn.Parameter], SGDSaI]:
    params = [nn.Parameter(value) for value in draw(0, dtype, device)]
    return params, SGDSaI(params, **{"lr": LR, "weight_decay": 0.1} | options)


def step(params: list[nn.Parameter], optimizer: SGDSaI, number: int) -> None:
    """A step on fresh gradients, in new tensors."""
    for param, grad in zip(params, draw(number + 1, params[0].dtype, params[0].device), strict=True):
        param.grad = grad
    optimizer.step()


def options_of(state: str, rounding: str = "nearest") -> dict[str, Any]:
    return STATES[state] | {"rounding": rounding}


def assert_near(actual: list[Any], expected: list[Any]) -> None:
    """To a unit in the last place; one element of a hundred may have been rounded to the other side.

    Where that happens to a momentum of 8 bits, the parameter is off by as much as a step of its code.
    """
    eps = max(torch.finfo(actual[0].dtype).eps, 4e-6)
    x, y = (
        torch.cat([each.detach().cpu().double().flatten() for each in side]) for side in (actual, expected)
    )
    off = (x - y).abs()
    beyond = off > eps * y.abs().clamp_min(0.1)
    assert beyond.double().mean().item() <= 0.01, f"{int(beyond.sum())} of {beyond.numel()} are off"
    assert off.max().item() <= 0.05


@every_mix
def test_steps_are_those_of_the_for_loop_on_the_cpu(
    device: torch.device, dtype: str, state: str, rounding: str
) -> None:
    options = options_of(state, rounding)
    actual = build(DTYPES[dtype], device, **options)
    for number in range(5):
        step(*actual, number)
    expected = build(DTYPES[dtype], "cpu", foreach=False, fused=False, **options)
    for number in range(5):
        step(*expected, number)
    assert_near(actual[0], expected[0])
    for p, q in zip(actual[0], expected[0], strict=True):
        one, two = (optimizer.state[param] for (_, optimizer), param in ((actual, p), (expected, q)))
        assert one.keys() == two.keys()
        assert one["gsnr"] == pytest.approx(two["gsnr"], rel=1e-6)
        if "momentum_buffer" in one and one["momentum_buffer"].is_floating_point():
            assert_near([one["momentum_buffer"]], [two["momentum_buffer"]])


@pytest.mark.gpu
@pytest.mark.parametrize("way", [{}, {"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}])
def test_a_group_on_several_devices(way: dict[str, Any]) -> None:
    params, optimizer = build(torch.float32, "cpu", **way)
    others = [nn.Parameter(value.to("cuda" if i % 2 else "cpu")) for i, value in enumerate(draw(0))]
    other = SGDSaI(others, lr=LR, weight_decay=0.1, **way)
    for number in range(3):
        step(params, optimizer, number)
        for param, same in zip(others, params, strict=True):
            param.grad = same.grad.to(param.device)
        other.step()
    assert_near([param.cpu() for param in others], params)


@every_state
def test_float32_is_near_float64(device: torch.device, state: str) -> None:
    """Whatever is kept in few bits is off by these bits, and no more."""
    allowed = {"fp32 m": 2e-6, "no m": 2e-6, "fp16 m": 1e-3, "bf16 m": 5e-3, "8-bit m": 3e-2}[state]
    wide = {"momentum": STATES[state].get("momentum", 0.9)}
    actual, expected = build(torch.float32, device, **STATES[state]), build(torch.float64, "cpu", **wide)
    for number in range(5):
        step(*actual, number)
        for param, grad in zip(expected[0], draw(number + 1), strict=True):
            param.grad = grad.double()
        expected[1].step()
    for p, q in zip(actual[0], expected[0], strict=True):
        off = (p.detach().cpu().double() - q.detach()).norm() / q.detach().norm()
        assert off.item() <= allowed


@every_state
def test_stochastic_rounding_has_the_right_mean(device: torch.device, state: str) -> None:
    """Steps far below a unit in the last place: to nearest nothing would move."""
    param = nn.Parameter(torch.ones(512, 512, dtype=torch.bfloat16, device=device))
    optimizer = SGDSaI([param], lr=2.0**-14, rounding="stochastic", **STATES[state])
    for _ in range(64):
        param.grad = torch.ones_like(param)
        optimizer.step()
    # 262 144 elements of variance below 64 · 2^-14 · 2^-8: six deviations of their mean.
    assert param.float().mean().item() == pytest.approx(1 - 64 * 2.0**-14, abs=6 * 2.0**-8 / 512)


@every_state
def test_a_grad_scaler_that_finds_an_infinity(device: torch.device, state: str) -> None:
    """That step changes nothing; the others are those without a scaler, to the rounding of half gradients."""
    runs = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 8)).to(device)
        x = torch.randn(32, 64).to(device)
        optimizer = SGDSaI(model.parameters(), lr=0.5, **STATES[state])
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8, enabled=scaled)
        for number in range(4):
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.float16):
                loss = model(x).square().mean()
            scaler.scale(loss).backward()
            if number == 2:
                if not scaled:
                    continue
                before = [p.detach().clone() for p in model.parameters()]
                next(model.parameters()).grad[3, 5] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            if number == 2:
                assert scaler.get_scale() == 2.0**7
                assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        runs.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(runs[1], runs[0], rtol=2e-3, atol=2e-3)


@pytest.mark.gpu
@every_mix
def test_no_step_waits_for_the_device(dtype: str, state: str, rounding: str) -> None:
    params, optimizer = build(DTYPES[dtype], "cuda", **options_of(state, rounding))
    for number in range(2):
        step(params, optimizer, number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for lr in (LR, LR / 2, LR / 2):
            optimizer.param_groups[0]["lr"] = lr
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Block(nn.Module):
    """A layer of a transformer; its attention is written out, since fused ones add in any order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(torch.softmax(q @ k.mT / q.size(-1) ** 0.5, dim=-1) @ v)
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.last = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x).clone()  # FSDP2 warns of a view


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """The parameters after five steps, whole."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(4, 12, 16, generator=generator).to(device, dtype)
        optimizer.zero_grad()
        (model(x).float() - x.float().roll(1, 1)).square().mean().backward()
        optimizer.step()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in model.parameters()]


#: What stands for the options where a test takes seconds.
SOME = {
    "fp32": (torch.float32, {}),
    "bf16, 8-bit m, stochastic": (torch.bfloat16, {"state_dtype": "8bit", "rounding": "stochastic"}),
    "bf16, no m, stochastic": (torch.bfloat16, {"momentum": 0.0, "rounding": "stochastic"}),
    "bf16, bf16 m, kahan": (torch.bfloat16, {"state_dtype": torch.bfloat16, "rounding": "kahan"}),
}
some = pytest.mark.parametrize("name", SOME)


@some
def test_gradient_release_is_ordinary_training(device: torch.device, name: str) -> None:
    dtype, options = SOME[name]
    ends = []
    for release in (False, True):
        model = Transformer().to(device, dtype)
        optimizer = SGDSaI(model.parameters(), lr=LR, measure_first=True, **options)
        if release:
            gradient_release(model, optimizer)
        ends.append(trained(model, optimizer, device, dtype))
        assert all(p.grad is None for p in model.parameters()) == release
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


@pytest.fixture
def one_rank(device: torch.device, tmp_path: Path) -> Iterator[None]:
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@some
def test_ddp_is_ordinary_training(device: torch.device, name: str) -> None:
    dtype, options = SOME[name]
    plain, model = (Transformer().to(device, dtype) for _ in range(2))
    expected = trained(plain, SGDSaI(plain.parameters(), lr=LR, **options), device, dtype)
    ddp = nn.parallel.DistributedDataParallel(model)
    actual = trained(ddp, SGDSaI(ddp.parameters(), lr=LR, **options), device, dtype)
    assert all(torch.equal(p, q) for p, q in zip(actual, expected, strict=True))


@pytest.mark.usefixtures("one_rank")
@some
def test_fsdp2_is_ordinary_training(device: torch.device, name: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dtype, options = SOME[name]
    plain, model = (Transformer(256).to(device, dtype) for _ in range(2))
    expected = trained(plain, SGDSaI(plain.parameters(), lr=LR, **options), device, dtype)
    mesh = init_device_mesh(device.type, (1,))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    optimizer = SGDSaI(model.parameters(), lr=LR, **options)
    actual = trained(model, optimizer, device, dtype)
    if "8-bit" in name:  # but in the first layer, of 16 columns, where FSDP2 keeps 16 bits
        kept = [optimizer.state[param]["momentum_buffer"].dtype for param in model.blocks.parameters()]
        assert kept.count(torch.int8) == 2 * sum(p.dim() == 2 for p in model.blocks[0].parameters())
        assert_near(actual, expected)
    else:
        torch.testing.assert_close(actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("state", ["fp32 m", "8-bit m", "no m"])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [("fp32", "nearest"), ("bf16", "kahan"), ("bf16", "stochastic")]
)
def test_compiled_step(dtype: str, rounding: str, state: str) -> None:
    options = options_of(state, rounding)
    expected, actual = (build(DTYPES[dtype], "cuda", **options) for _ in range(2))
    compiled = torch.compile(actual[1].step)
    for number in range(3):
        step(*expected, number)
        for param, other in zip(actual[0], expected[0], strict=True):
            param.grad = other.grad
        compiled()
    assert_near(actual[0], expected[0])


@pytest.mark.gpu
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("dtype", "rounding"), [("fp32", "nearest"), ("bf16", "kahan"), ("bf16", "stochastic")]
)
def test_cuda_graph(dtype: str, rounding: str, state: str) -> None:
    """Replayed with another lr and other gradients; random bits are those of the step, not of the capture."""
    options = options_of(state, rounding)
    lr = torch.tensor(LR, device="cuda")
    expected = build(DTYPES[dtype], "cuda", **options)
    actual = build(DTYPES[dtype], "cuda", **options | {"lr": lr, "capturable": True})
    step(*expected, 0)
    step(*actual, 0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual[1].step()
    for number in range(1, 4):
        lr.fill_(LR / (1 + number))
        expected[1].param_groups[0]["lr"] = LR / (1 + number)
        step(*expected, number)
        for p, q in zip(actual[0], expected[0], strict=True):
            p.grad.copy_(q.grad)
        graph.replay()
    assert_near(actual[0], expected[0])


def _saved(pair: Any) -> Any:
    """Through a file that is read to the CPU, into an optimizer that a script has built anew."""
    params, optimizer = pair
    file = io.BytesIO()
    torch.save(([p.detach() for p in params], optimizer.state_dict()), file)
    file.seek(0)
    values, state = torch.load(file, map_location="cpu")
    copies = [nn.Parameter(value.to(params[0].device)) for value in values]
    fresh = SGDSaI(copies, **{k: v for k, v in optimizer.defaults.items() if k in ARGUMENTS})
    fresh.load_state_dict(state)
    return copies, fresh


def _by_the_cpu(pair: Any) -> Any:
    """Loaded by an optimizer on the CPU, and from there by one on the device."""
    params, optimizer = pair
    given = {k: v for k, v in optimizer.defaults.items() if k in ARGUMENTS}
    there = SGDSaI([nn.Parameter(p.detach().cpu()) for p in params], **given)
    there.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    here = [nn.Parameter(p.detach().clone()) for p in params]
    back = SGDSaI(here, **given)
    back.load_state_dict(there.state_dict())
    return here, back


ARGUMENTS = ("lr", "momentum", "weight_decay", "state_dtype", "rounding")
COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "file": _saved,
    "cpu": _by_the_cpu,
}


@pytest.mark.parametrize("way", COPIES)
@some
def test_a_copy_continues_bit_for_bit(device: torch.device, way: str, name: str) -> None:
    dtype, options = SOME[name]
    params, optimizer = build(dtype, device, **options)
    for number in range(3):
        step(params, optimizer, number)
    others, other = COPIES[way]((params, optimizer))
    for number in range(3, 6):
        step(params, optimizer, number)
    for number in range(3, 6):
        step(others, other, number)
    assert others[0].device == params[0].device
    assert all(p is not q and torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.gpu
def test_moments_are_those_of_the_cpu_and_the_same_in_every_run() -> None:
    torch.manual_seed(0)
    shapes = [(), (5,), (0,), (16384,), (3, 16385), (1000, 1001)]
    grads = [torch.randn(s).to(d) for s in shapes for d in (torch.float32, torch.bfloat16, torch.float64)]
    grads[12][:1] = 0.0
    here = measure([[grad] for grad in grads])
    there, again = (measure([[grad.cuda()] for grad in grads]) for _ in range(2))
    assert there == again
    for one, two in zip(here, there, strict=True):
        assert (one.n, one.nonzero) == (two.n, two.nonzero)
        assert two.total_sq == pytest.approx(one.total_sq, rel=1e-13)
        assert two.total == pytest.approx(one.total, rel=1e-9, abs=1e-9)
    assert not measure([[torch.tensor([1.0, torch.nan], device="cuda")]])[0].finite
