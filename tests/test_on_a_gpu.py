"""What only a GPU can show: every option of the optimizer there, next to the same optimizer on the CPU."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgd_sai import SGDSaI, gradient_release
from sgd_sai.gsnr import measure

STATES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"state_dtype": torch.bfloat16},
    "fp16": {"state_dtype": torch.float16},
    "8bit": {"state_dtype": "8bit"},
    "none": {"momentum": 0.0},
}
KINDS = [
    *((torch.float32, state, "nearest") for state in STATES),
    *itertools.product([torch.bfloat16], STATES, ["nearest", "stochastic", "kahan"]),
    *itertools.product([torch.float16], STATES, ["nearest", "kahan"]),
]
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{str(k[0])[6:]}-{k[1]}-{k[2]}")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
SHAPES = [(90, 60), (16, 30, 4, 4), (7,), (), (3, 2048), (0, 5)]


def options_of(kind: tuple[torch.dtype, str, str]) -> dict[str, Any]:
    return {"lr": 0.1, "weight_decay": 0.1, "rounding": kind[2], **STATES[kind[1]]}


def parameters(device: str, dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]
    params[1] = params[1].to(memory_format=torch.channels_last)
    return [nn.Parameter(param) for param in params]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        param.grad = torch.empty_like(param).copy_(grad)


def assert_alike(actual: list[nn.Parameter], expected: list[nn.Parameter]) -> None:
    """To one unit in the last place, in nearly all elements: rounding may turn on a float32's last bit."""
    for a, e in zip(actual, expected, strict=True):
        ulps = 1.01 * torch.finfo(e.dtype).eps * (32 if e.dtype == torch.float32 else 1)
        torch.testing.assert_close(a.cpu(), e.cpu(), rtol=ulps, atol=ulps)
        if e.dtype != torch.float32 and e.numel() > 1000:
            assert (a.cpu() == e.cpu()).float().mean() > 0.98


@pytest.mark.gpu
@EACH
def test_a_step_is_that_of_the_cpu(kind: tuple[torch.dtype, str, str]) -> None:
    """Also the g-SNR that it measures, and the bits of stochastic rounding."""
    here, there = parameters("cpu", kind[0]), parameters("cuda", kind[0])
    one, two = (SGDSaI(params, **options_of(kind)) for params in (here, there))
    for step in range(2):
        for params, optimizer in ((here, one), (there, two)):
            give_gradients(params, step)
            optimizer.step()
        assert_alike(there, here)
        with torch.no_grad():
            for p, q in zip(there, here, strict=True):
                p.copy_(q)
    for p, q in zip(there, here, strict=True):
        assert two.state[p]["gsnr"] == pytest.approx(one.state[q]["gsnr"], rel=1e-9)


@pytest.mark.gpu
@EACH
def test_the_host_does_not_wait(kind: tuple[torch.dtype, str, str]) -> None:
    params = parameters("cuda", kind[0])
    optimizer = SGDSaI(params, **options_of(kind))
    give_gradients(params, 0)
    optimizer.step()
    for step in range(1, 4):
        give_gradients(params, step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@EACH
def test_a_cuda_graph_of_a_step(kind: tuple[torch.dtype, str, str]) -> None:
    """Each replay is a step of its own, with the lr and the random bits of the moment."""
    expected, actual = parameters("cuda", kind[0]), parameters("cuda", kind[0])
    lr = torch.tensor(0.125, device="cuda")  # as exact as a float
    one = SGDSaI(expected, **options_of(kind) | {"lr": 0.125})
    two = SGDSaI(actual, **options_of(kind) | {"lr": lr, "capturable": True})
    for params, optimizer in ((expected, one), (actual, two)):
        give_gradients(params, 0)
        optimizer.step()
    two.step()
    one.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        two.step()
    for step in range(1, 4):
        one.param_groups[0]["lr"] = 2.0**-step
        lr.fill_(2.0**-step)
        give_gradients(expected, step)
        for p, q in zip(expected, actual, strict=True):
            q.grad.copy_(p.grad)
        one.step()
        graph.replay()
    for p, q in zip(expected, actual, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("state", STATES)
def test_grad_scaler_unscales_in_the_step_and_skips_infinities(state: str) -> None:
    plain, scaled = parameters("cuda", torch.float32), parameters("cuda", torch.float32)
    one, two = (SGDSaI(params, lr=0.1, **STATES[state]) for params in (plain, scaled))
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for step in range(4):
        give_gradients(plain, step)
        give_gradients(scaled, step)
        infinite = step == 2
        for p in scaled:
            p.grad = p.grad * scaler.scale(torch.ones((), device="cuda"))
        if infinite:
            scaled[0].grad[0, 0] = torch.inf
        else:
            one.step()
        scaler.step(two)
        scaler.update()
        torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-6)
    assert two._step_supports_amp_scaling


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [k for k in KINDS if k[1] in ("fp32", "8bit", "none")], ids=str)
def test_a_compiled_step(kind: tuple[torch.dtype, str, str]) -> None:
    if kind[1] == "8bit" or kind[2] != "nearest":
        pytest.skip("the pieces of these steps cannot be compiled yet")
    eager, compiled = parameters("cuda", kind[0]), parameters("cuda", kind[0])
    one, two = (SGDSaI(params, **options_of(kind)) for params in (eager, compiled))
    step = torch.compile(two.step)
    for seed in range(3):
        give_gradients(eager, seed)
        give_gradients(compiled, seed)
        one.step()
        step()
    assert_alike(compiled, eager)


@DEVICES
@pytest.mark.parametrize("kind", [k for k in KINDS if k[1] in ("fp32", "8bit", "none")], ids=str)
def test_gradient_release_is_ordinary_training(device: str, kind: tuple[torch.dtype, str, str]) -> None:
    """Bit for bit, stochastic rounding too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 80), nn.LayerNorm(80), nn.GELU(), nn.Linear(80, 64))
    models = [copy.deepcopy(model).to(device, kind[0]) for _ in range(2)]
    optimizers = [SGDSaI(of.parameters(), **options_of(kind), measure_first=True) for of in models]
    gradient_release(models[1], optimizers[1])
    for seed in range(4):
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)).to(device, kind[0])
        for of, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            of(x).float().square().mean().backward()
            optimizer.step()
    for p, q in zip(*(of.parameters() for of in models), strict=True):
        assert torch.equal(p, q)


@pytest.mark.gpu
@EACH
def test_a_state_goes_on_bit_for_bit(kind: tuple[torch.dtype, str, str]) -> None:
    """Through the CPU, a deep copy, and a new optimizer."""
    params = parameters("cuda", kind[0])
    optimizer = SGDSaI(params, **options_of(kind))
    for step in range(2):
        give_gradients(params, step)
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.update({name: of.cpu() for name, of in state.items() if isinstance(of, Tensor)})
    resumed = [nn.Parameter(param.detach().clone()) for param in params]
    other = SGDSaI(resumed)
    other.load_state_dict(saved)
    for step in range(2, 4):
        for of, stepping in ((params, optimizer), (resumed, other)):
            give_gradients(of, step)
            stepping.step()
    assert all(torch.equal(p, q) for p, q in zip(params, resumed, strict=True))


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


@pytest.fixture
def one_rank(tmp_path: Any) -> Iterator[None]:
    """A process group of this process alone."""
    torch.cuda.set_device(0)
    torch.distributed.init_process_group(
        "nccl",
        init_method=f"file://{tmp_path}/ranks",
        rank=0,
        world_size=1,
        device_id=torch.device("cuda", 0),
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("how", ["fsdp", "ddp"])
@pytest.mark.parametrize("state", ["fp32", "bf16", "none"])
def test_sharded_over_one_rank(how: str, state: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 80), nn.GELU(), nn.Linear(80, 64)).cuda().bfloat16()
    spread: nn.Module = copy.deepcopy(plain)
    spread = fully_shard(spread) if how == "fsdp" else DistributedDataParallel(spread)  # type: ignore[assignment]
    rounding = {"rounding": "stochastic"}
    optimizers = [SGDSaI(of.parameters(), lr=0.1, **STATES[state], **rounding) for of in (plain, spread)]
    for seed in range(3):
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)).cuda().bfloat16()
        for of, optimizer in zip((plain, spread), optimizers, strict=True):
            optimizer.zero_grad()
            of(x).float().square().mean().backward()
            optimizer.step()
    for p, q in zip(plain.parameters(), spread.parameters(), strict=True):
        whole = q.full_tensor() if hasattr(q, "full_tensor") else q
        torch.testing.assert_close(whole, p, rtol=2**-7, atol=2**-7)
