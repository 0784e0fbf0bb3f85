"""The optimizers of the study: one rule of weight decay for all, and the bytes of their states."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from sgd_sai.lab import optimizers
from sgd_sai.lab.optimizers import OPTIMIZERS

SHRINK = 1e-3


#: Adam gets no decay; Prodigy and schedule-free decay as their docstrings say.
OTHERWISE = {"adam", "prodigy", "schedule-free"}


@pytest.fixture(autouse=True)
def _installed(request):
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    try:
        optimizers.check_installed([name] if name else [])
    except ValueError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("lr", [0.01, 1.0])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in OTHERWISE])
def test_a_step_at_the_peak_shrinks_a_weight_by_the_same_fraction(name, lr):
    model = nn.Linear(3, 2)
    optimizer = optimizers.build(name, model, lr, SHRINK)
    bias = model.bias.detach().clone()
    for _ in range(100):  # SGD's momentum fills up
        before = model.weight.detach().clone()
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert (1 - model.weight / before).detach().numpy() == pytest.approx(SHRINK, rel=0.02)
    assert torch.equal(model.bias, bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns_and_its_state_returns(name):
    """Ten steps lower the loss, and ten more are the same after a round trip of model and optimizer."""

    def trained(optimizer, model, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        return nn.functional.mse_loss(model(inputs), targets).item()

    def made():
        torch.manual_seed(0)
        # Its first matrix is large enough, 4096 numbers, for all that keep states in 8 bit to do so.
        model = nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 3))
        return model, optimizers.build(name, model, OPTIMIZERS[name].start, SHRINK)

    inputs, targets = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(1)).unbind()
    targets = targets[:, :3]
    model, optimizer = made()
    at_first = nn.functional.mse_loss(model(inputs), targets).item()
    trained(optimizer, model, 10)
    saved = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved)
    whole = trained(optimizer, model, 10)
    again, resumed = made()
    saved.seek(0)
    weights, state = torch.load(saved, weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    if name == "release":
        return  # it measures again
    assert trained(resumed, again, 10) == whole
    assert min(whole, trained(optimizer, model, 100)) < at_first


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lion needs the package 'optimi': pip install 'sgd-sai\[study\]'"):
        optimizers.check_installed(["sgd", "lion"])
    with pytest.raises(ValueError, match=r"adamw-8bit needs .* pip install 'sgd-sai\[8bit\]'"):
        optimizers.check_installed(["adamw-8bit"])


def test_an_older_torch_without_muon_is_one_line(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"muon needs torch\.optim\.Muon, of torch 2\.9 or later"):
        optimizers.check_installed(["muon"])


def test_torchaos_learning_rate_stays_a_number_that_can_be_set():
    pytest.importorskip("torchao")
    model = nn.Linear(3, 2)
    optimizer = optimizers.build("adamw-8bit-torchao", model, 1e-3, 0.0)
    model(torch.ones(1, 3)).sum().backward()
    for lr in (0.1, 0.2):
        before = model.weight.detach().clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        torch.testing.assert_close(before - model.weight, torch.full_like(before, lr))
        assert type(optimizer.param_groups[0]["lr"]) is float


@pytest.mark.parametrize("name", ["adamw-8bit", "adamw-8bit-torchao"])
def test_bytes_of_an_8_bit_state(name):
    pytest.importorskip(optimizers.OPTIMIZERS[name].package)
    model = nn.Linear(1024, 64, bias=False)
    optimizer = optimizers.build(name, model, 1e-3, SHRINK)
    model(torch.randn(4, 1024)).sum().backward()
    optimizer.step()
    # Two moments of a byte, a float32 for each 256 numbers of each, two tables of 256, a count.
    assert 0 < optimizers.state_bytes(optimizer) - 2 * (65536 + 4 * 256 + 4 * 256) <= 8


def test_a_schedule_free_optimizer_is_evaluated_at_its_average():
    pytest.importorskip("schedulefree")
    model = nn.Linear(3, 2)
    optimizer = optimizers.build("schedule-free", model, 0.1, 0.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    trained_at = model.weight.detach().clone()
    with optimizers.evaluated_weights(optimizer):
        assert not torch.equal(model.weight, trained_at)
    torch.testing.assert_close(model.weight, trained_at)


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Conv1d(1, 1, 3))
    optimizer = optimizers.build("muon", model, 1e-3, SHRINK)
    muon, adamw = optimizer.parts
    assert [param is model[1].weight for group in muon.param_groups for param in group["params"]] == [True]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4


@pytest.mark.parametrize(
    ("name", "per_parameter"),
    [("sgd-sai", 4), ("sgd", 4), ("adamw", 8), ("sgd-sai-bf16", 2), ("sgd-sai-sqrt-d", 4), ("lion", 4)],
)
def test_bytes_of_the_state(name, per_parameter):
    model = nn.Linear(100, 50)
    optimizer = optimizers.build(name, model, 1e-3, SHRINK)
    model(torch.randn(4, 100)).sum().backward()
    optimizer.step()
    # Beyond the moments there is at most one number for each of the two tensors.
    assert 0 <= optimizers.state_bytes(optimizer) - per_parameter * 5050 <= 16
