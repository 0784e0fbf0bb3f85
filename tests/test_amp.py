"""Mixed and low precision: scaled losses that overflow, autocast, parameters and gradients of fewer bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optimizer_info import WAYS
from sgd_sai import UNLATCHED, SGDSaI

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def regression(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(DEVICE, dtype)
    x = torch.randn(64, 8, device=DEVICE)
    return net, x.to(dtype), x[:, :3].sum(1, keepdim=True).to(dtype)


@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
def test_overflow_at_the_first_step_of_a_grad_scaler(way: str) -> None:
    """Nothing latches and nothing moves while the scale is too large; the first finite step latches."""
    net, x, y = regression()
    optimizer = SGDSaI(net.parameters(), lr=0.3, **WAYS[way])
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40, growth_interval=1000)
    start = [p.detach().clone() for p in net.parameters()]
    losses, skipped = [], 0
    for _ in range(200):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.float16):
            loss = nn.functional.mse_loss(net(x), y.to(torch.float16))
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale and skipped == len(losses):
            skipped += 1
            assert optimizer.param_groups[0]["gsnr_max"] == UNLATCHED
            assert all(torch.equal(p, q) for p, q in zip(net.parameters(), start, strict=True))
        losses.append(loss.item())
    assert skipped >= 1
    assert optimizer.param_groups[0]["gsnr_max"] > 0
    assert losses[-1] < 0.2 * losses[skipped]


def test_a_scaler_that_unscales_leaves_the_scales_alone() -> None:
    """g-SNR does not see the loss's scale: with a scaler the run is that without one."""
    runs = []
    for scaled in (False, True):
        net, x, y = regression()
        optimizer = SGDSaI(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10, enabled=scaled)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(nn.functional.mse_loss(net(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        runs.append(list(net.parameters()))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-5, atol=1e-6)


def test_bf16_autocast() -> None:
    net, x, y = regression()
    optimizer = SGDSaI(net.parameters(), lr=0.3)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pure_low_precision(way: str, dtype: torch.dtype) -> None:
    """Momentum and arithmetic stay in float32; only the parameter is rounded."""
    if way == "differentiable":
        pytest.skip("trains leaves, which a differentiable step cannot move")
    net, x, y = regression(dtype)
    optimizer = SGDSaI(net.parameters(), lr=0.3, **WAYS[way])
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert {s["momentum_buffer"].dtype for s in optimizer.state.values()} == {torch.float32}
    assert {p.dtype for p in net.parameters()} == {dtype}


@pytest.mark.parametrize("way", ["for-loop", "foreach", "fused", "default"])
@pytest.mark.parametrize(
    ("of_param", "of_grad"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float32)],
    ids=str,
)
def test_gradients_of_another_dtype(way: str, of_param: torch.dtype, of_grad: torch.dtype) -> None:
    torch.manual_seed(0)
    start = torch.randn(30, 7).to(of_param)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    p.grad_dtype = None  # any
    one, two = SGDSaI([p], lr=0.1, **WAYS[way]), SGDSaI([q.float().detach().requires_grad_()], lr=0.1)
    (wide,) = two.param_groups[0]["params"]
    for _ in range(3):
        p.grad = torch.randn(30, 7).to(of_grad)
        wide.grad = p.grad.float()
        one.step()
        two.step()
        wide.data = wide.data.to(of_param).float()
    torch.testing.assert_close(p.float(), wide, rtol=0, atol=1e-2 if of_param != torch.float32 else 1e-6)
    assert p.dtype == of_param
