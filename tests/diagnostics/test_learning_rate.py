"""Learning rates: exact between the forms of SGDSaI's lr, and from AdamW's by the first update's size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from optimizer_info import give_gradients, parameters
from sgd_sai import SGDSaI, convert_lr, transfer_lr
from sgd_sai.gsnr import Normalize

FORMS: list[Normalize] = [True, False, "rms"]


def trained(lr: float, decay: float, normalize: Normalize, steps: int = 12) -> tuple[list[nn.Parameter], Any]:
    params = parameters(torch.float64)
    optimizer = SGDSaI(params, lr=lr, weight_decay=decay, normalize=normalize)
    for step in range(steps):
        give_gradients(params, step)
        optimizer.step()
    return params, optimizer.param_groups[0]


@pytest.mark.parametrize("given", FORMS)
@pytest.mark.parametrize("wanted", FORMS)
def test_the_converted_run_is_the_same_run(given: Normalize, wanted: Normalize) -> None:
    one, group = trained(0.02, 0.3, given)
    lr, decay = convert_lr(0.02, 0.3, given=given, wanted=wanted, normalizers=group)
    other, _ = trained(lr, decay, wanted)
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_paper_from_raw() -> None:
    largest = {"gsnr_max": 768.0}
    assert convert_lr(1e-3, 0.1, given=False, wanted=True, normalizers=largest) == (0.768, 0.1 / 768)
    assert convert_lr(0.768, 0.1 / 768, given=True, wanted=False, normalizers=largest) == pytest.approx(
        (1e-3, 0.1)
    )


@pytest.mark.parametrize(("normalizers", "message"), [
    ({"gsnr_max": 5.0}, "normalizers: lacks 'gsnr_rms'"),
    ({"gsnr_max": -1.0, "gsnr_rms": -1.0}, "no block is latched: take a step first"),
])  # fmt: skip
def test_conversion_without_a_normaliser(normalizers: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_lr(0.1, given=False, wanted="rms", normalizers=normalizers)


def named(params: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"p{index}", param) for index, param in enumerate(params)]


def moves(optimizer_class: Any, lr: float, **options: Any) -> list[torch.Tensor]:
    params = parameters(torch.float64)
    give_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer_class(params, lr=lr, weight_decay=0.0, **options).step()
    return [p.detach() - q for p, q in zip(params, before, strict=True)]


def size(deltas: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(d.square().sum()) for d in deltas) / sum(d.numel() for d in deltas))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"given": "raw"}, "given: given 'raw'; allowed: True, False, 'rms' or a positive"),
    ({"wanted": 1}, "wanted: given 1; allowed"),
    ({"lr": -1.0}, "lr: given -1.0; allowed: a finite number > 0"),
    ({"weight_decay": math.nan}, "weight_decay: given nan; allowed: a finite number ≥ 0"),
])  # fmt: skip
def test_what_cannot_be_converted(arguments: dict[str, Any], message: str) -> None:
    normal: dict[str, Any] = {"lr": 1.0, "given": True, "wanted": False, "normalizers": {"gsnr_max": 2.0}}
    with pytest.raises(ValueError, match=message):
        convert_lr(**{**normal, **arguments})


@pytest.mark.parametrize("normalize", FORMS)
@pytest.mark.parametrize("adam_eps", [1e-8, 0.3])
def test_the_transferred_lr_makes_the_first_update_as_large_as_adamws(
    normalize: Normalize, adam_eps: float
) -> None:
    params = parameters(torch.float64)
    give_gradients(params, 0)
    found = transfer_lr(named(params), 0.02, normalize=normalize, adam_eps=adam_eps)
    adamw = moves(torch.optim.AdamW, 0.02, eps=adam_eps)
    assert size(moves(SGDSaI, found.lr, normalize=normalize)) == pytest.approx(size(adamw), rel=1e-9)
    for place, (name, lr) in enumerate(found.by_block.items()):
        assert name == f"p{place}"
        alone = moves(SGDSaI, lr, normalize=normalize)[place]
        assert size([alone]) == pytest.approx(size([adamw[place]]), rel=1e-9)
    if normalize == "rms" and adam_eps < 1e-3:
        assert found.lr == pytest.approx(0.02, rel=1e-6)


def test_the_transfer_from_a_parameter_group_converts() -> None:
    params = parameters(torch.float64)
    give_gradients(params, 0)
    found = transfer_lr(named(params), 0.02)
    _, group = trained(found.lr, 0.0, True, steps=1)
    for key, value in found.normalizers.items():
        assert group[key] == pytest.approx(value, rel=1e-12)


def scaled(enabled: bool = True) -> tuple[nn.Module, torch.amp.GradScaler]:
    """A model whose loss has been scaled; a scale that is a power of two changes no digit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    scaler = torch.amp.GradScaler("cpu", enabled=enabled)
    scaler.scale(net(torch.randn(64, 8)).square().mean()).backward()
    return net, scaler


@pytest.mark.parametrize("normalize", [*FORMS, 30.0])
@pytest.mark.parametrize("adam_eps", [1e-8, 0.3])
def test_the_scale_of_a_grad_scaler_is_divided_out(normalize: Normalize, adam_eps: float) -> None:
    plain, off = scaled(enabled=False)
    truth = transfer_lr(plain, 1e-3, normalize=normalize, adam_eps=adam_eps)
    assert transfer_lr(plain, 1e-3, normalize=normalize, adam_eps=adam_eps, scaler=off) == truth

    net, scaler = scaled()
    gradients = [param.grad.clone() for param in net.parameters() if param.grad is not None]
    found = transfer_lr(net, 1e-3, normalize=normalize, adam_eps=adam_eps, scaler=scaler)
    assert found.lr == pytest.approx(truth.lr, rel=1e-6)
    assert found.by_block == pytest.approx(truth.by_block, rel=1e-6)
    assert found.normalizers == pytest.approx(truth.normalizers, rel=1e-6)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))

    scaler.unscale_(torch.optim.SGD(net.parameters(), lr=0.1))
    unscaled = transfer_lr(net, 1e-3, normalize=normalize, adam_eps=adam_eps)
    assert unscaled.lr == pytest.approx(truth.lr, rel=1e-6)


def test_gradients_that_look_scaled_are_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    net, scaler = scaled()
    transfer_lr(net, 1e-3, scaler=scaler)
    transfer_lr(scaled(enabled=False)[0], 1e-3)
    transfer_lr(net, 1e-3, scaler=torch.amp.GradScaler("cpu", enabled=False))  # as of a loss that is a sum
    assert not recwarn.list
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None))
    with pytest.warns(UserWarning, match="gradients: their norm is") as caught:
        transfer_lr(net, 1e-3)
    message = str(caught[0].message)
    assert len(caught) == 1
    assert f"{norm:.3g}" in message
    assert "scaler.unscale_(optimizer)" in message
    assert "scaler=scaler" in message
    assert caught[0].filename == __file__


def test_a_scaler_that_has_unscaled_or_not_yet_scaled() -> None:
    net, scaler = scaled()
    with pytest.raises(ValueError, match="scaler: given one that has scaled no loss yet"):
        transfer_lr(net, 1e-3, scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(
        ValueError, match=r"scaler: given 65536\.0; allowed: a torch\.amp\.GradScaler or None"
    ):
        transfer_lr(net, 1e-3, scaler=65536.0)  # type: ignore[arg-type]
    scaler.unscale_(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="scaler: it has already unscaled"):
        transfer_lr(net, 1e-3, scaler=scaler)


def test_transfer_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match="gradients: none of the model's 2 trainable parameters"):
        transfer_lr(nn.Linear(2, 2), 1e-3)
