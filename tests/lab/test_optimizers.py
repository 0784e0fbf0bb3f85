"""The optimizers of the study: one rule of weight decay for all, and the bytes of their states."""

from __future__ import annotations

import copy

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
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        return model, optimizers.build(name, model, OPTIMIZERS[name].start, SHRINK)

    inputs, targets = torch.randn(2, 64, 6, generator=torch.Generator().manual_seed(1)).unbind()
    targets = targets[:, :3]
    model, optimizer = made()
    at_first = nn.functional.mse_loss(model(inputs), targets).item()
    trained(optimizer, model, 10)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    whole = trained(optimizer, model, 10)
    again, resumed = made()
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    if name == "release":
        return  # it measures again
    assert trained(resumed, again, 10) == whole
    assert min(whole, trained(optimizer, model, 100)) < at_first


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lion needs the package 'optimi': pip install 'sgd-sai\[study\]'"):
        optimizers.check_installed(["sgd", "lion"])


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
