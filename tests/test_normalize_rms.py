"""`normalize="rms"`: lr means at the first step what AdamW's lr means, whatever the loss is multiplied by."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from optimizer_info import WAYS, give_gradients, parameters
from sgd_sai import UNLATCHED, SGDSaI


def rms_of_move(params: list[nn.Parameter], before: list[torch.Tensor]) -> float:
    moves = [torch.view_as_real(d) if (d := p.detach() - q).is_complex() else d
             for p, q in zip(params, before, strict=True)]  # fmt: skip
    return math.sqrt(sum(m.double().square().sum().item() for m in moves) / sum(m.numel() for m in moves))


def first_move(optimizer_class: Any, params: list[nn.Parameter], **options: Any) -> float:
    before = [p.detach().clone() for p in params]
    optimizer_class(params, **options).step()
    return rms_of_move(params, before)


@pytest.mark.parametrize("options", [
    {}, {"scale": "sqrt_d"}, {"blocks": "group"}, {"maximize": True}, {"unbiased": True}, {"momentum": 0.0},
    *(way for name, way in WAYS.items() if name != "differentiable"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_the_first_update_has_the_rms_of_adamws(options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, adamw = parameters(dtype), parameters(dtype)
    for params in (ours, adamw):
        give_gradients(params, 0)
        params[0].grad[:7] = 0.0  # rows of an embedding that the batch did not use: AdamW leaves them too
    moved = first_move(SGDSaI, ours, lr=0.02, normalize="rms", **options)
    assert moved == pytest.approx(
        first_move(torch.optim.AdamW, adamw, lr=0.02, weight_decay=0.0, eps=1e-14), rel=1e-9
    )


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**13])
def test_the_trajectory_does_not_depend_on_the_scale_of_the_loss(factor: float) -> None:
    one, other = parameters(), parameters()
    for params, scale in ((one, 1.0), (other, factor)):
        # σ + ε is not scale-free; torch's AdamW has the same ε, outside of its root.
        optimizer = SGDSaI(params, lr=0.02, weight_decay=0.1, normalize="rms", eps=0.0)
        for step in range(5):
            give_gradients(params, step, scale)
            optimizer.step()
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore:SGDSaI. eps")
@pytest.mark.parametrize(("eps", "same"), [(0.0, True), (1e-8, False)])
def test_a_small_block_depends_on_the_scale_of_the_loss_unless_eps_is_zero(eps: float, same: bool) -> None:
    moves = []
    for scale in (1.0, 2.0**-20):
        params = [nn.Parameter(torch.zeros(64, dtype=torch.float64)) for _ in range(2)]
        for param, size in zip(params, (1.0, 1e-3), strict=True):
            param.grad = scale * size * torch.linspace(-1.0, 2.0, 64, dtype=torch.float64)
        SGDSaI(params, lr=0.02, normalize="rms", eps=eps).step()
        moves.append(params[1].detach().norm().item())
    assert (moves[1] == pytest.approx(moves[0], rel=1e-6)) is same
    assert same or moves[1] < 0.5 * moves[0]


def late(params: list[nn.Parameter], step: int) -> None:
    give_gradients(params, step)
    if step < 2:
        params[1].grad = None
        params[2].grad.zero_()


@pytest.mark.filterwarnings("ignore:SGDSaI")
@pytest.mark.parametrize("saved_after", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resumes_bit_for_bit_and_late_blocks_take_the_recorded_number(
    saved_after: int, dtype: torch.dtype
) -> None:
    whole = parameters(dtype)
    optimizer = SGDSaI(whole, lr=0.02, weight_decay=0.1, normalize="rms")
    for step in range(saved_after):
        late(whole, step)
        optimizer.step()
    resumed = copy.deepcopy(whole)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = SGDSaI(resumed, lr=9.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for params, each in ((whole, optimizer), (resumed, other)):
        for step in range(saved_after, 5):
            late(params, step)
            each.step()
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))
    assert other.param_groups[0]["gsnr_rms"] == optimizer.param_groups[0]["gsnr_rms"]

    first = parameters(dtype)
    late(first, 0)
    alone = SGDSaI([first[0], first[3]], normalize="rms")
    alone.step()
    assert alone.param_groups[0]["gsnr_rms"] == optimizer.param_groups[0]["gsnr_rms"]


def test_groups_added_later_and_checkpoints_without_the_number() -> None:
    params = parameters()
    optimizer = SGDSaI(params[:2], lr=0.02)
    give_gradients(params, 0)
    optimizer.step()
    number = optimizer.param_groups[0]["gsnr_rms"]
    optimizer.add_param_group({"params": params[2:], "normalize": "rms"})
    optimizer.step()
    assert optimizer.param_groups[1]["gsnr_rms"] == number > 0

    older = SGDSaI(parameters()[:2]).state_dict()
    del older["param_groups"][0]["gsnr_rms"]
    optimizer = SGDSaI(parameters()[:2])
    optimizer.load_state_dict(older)
    assert optimizer.param_groups[0]["gsnr_rms"] == UNLATCHED
