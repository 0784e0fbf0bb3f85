"""The optimizers that the lab trains: one rule of weight decay for all, and states that return."""

from __future__ import annotations

import importlib.util
import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sgd_sai.peers import PEERS, Trained, builders, check_installed

SHRINK = 1e-3
TRAINED = {name: peer for name, peer in PEERS.items() if isinstance(peer, Trained)}


#: Adam gets no decay; Prodigy and schedule-free decay as their docstrings say.
OTHERWISE = {"adam", "prodigy", "schedule-free"}


@pytest.fixture(autouse=True)
def _installed(request):
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    try:
        check_installed([name] if name else [])
    except ValueError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("lr", [0.01, 1.0])
@pytest.mark.parametrize("name", [name for name in TRAINED if name not in OTHERWISE])
def test_a_step_at_the_peak_shrinks_a_weight_by_the_same_fraction(name, lr):
    model = nn.Linear(3, 2)
    optimizer = TRAINED[name].train(model, lr, SHRINK)
    bias = model.bias.detach().clone()
    for _ in range(100):  # SGD's momentum fills up
        before = model.weight.detach().clone()
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert (1 - model.weight / before).detach().numpy() == pytest.approx(SHRINK, rel=0.02)
    assert torch.equal(model.bias, bias)


@pytest.mark.parametrize("name", TRAINED)
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
        return model, TRAINED[name].train(model, TRAINED[name].start, SHRINK)

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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lion needs the package 'optimi': pip install 'sgd-sai\[study\]'"):
        check_installed(["sgd", "lion"])
    with pytest.raises(ValueError, match=r"adamw-8bit needs .* pip install 'sgd-sai\[8bit\]'"):
        check_installed(["adamw-8bit"])


def test_an_older_torch_without_muon_is_one_line(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"muon needs torch\.optim\.Muon, of torch 2\.9 or later"):
        check_installed(["muon"])


def test_torchaos_learning_rate_stays_a_number_that_can_be_set():
    pytest.importorskip("torchao")
    model = nn.Linear(3, 2)
    optimizer = TRAINED["adamw-8bit-torchao"].train(model, 1e-3, 0.0)
    model(torch.ones(1, 3)).sum().backward()
    for lr in (0.1, 0.2):
        before = model.weight.detach().clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        torch.testing.assert_close(before - model.weight, torch.full_like(before, lr))
        assert type(optimizer.param_groups[0]["lr"]) is float


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Conv1d(1, 1, 3))
    optimizer = TRAINED["muon"].train(model, 1e-3, SHRINK)
    muon, adamw = optimizer.parts
    assert [param is model[1].weight for group in muon.param_groups for param in group["params"]] == [True]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4


def test_muon_on_a_list_takes_matrices_but_no_embedding():
    params = [nn.Parameter(torch.zeros(shape)) for shape in ((8, 8), (8,), (2, 2, 2))]
    params.append(nn.Parameter(torch.empty(2**15, 2**10, device="meta")))
    (group,) = PEERS["muon-matrices"].plain(params, lr=0.1).param_groups
    assert [param is params[0] for param in group["params"]] == [True]


def adam_mini_names(named, model=None):
    pytest.importorskip("adam_mini")
    return [group["name"] for group in builders.adam_mini(named, model, lr=0.1).param_groups]


def test_adam_mini_keeps_names_that_fit_and_makes_one_block_of_others():
    shapes = {"query.weight": (8, 8), "wte": (5, 8), "conv.embed": (2, 3, 3), "embed.bias": (3,)}
    named = [(name, nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items()]
    # Without a configuration, heads have 2048² / 32 elements.
    assert adam_mini_names(named) == ["block.0", "wte", "block.2", "embed.bias"]
    model = nn.Module()
    model.config = SimpleNamespace(hidden_size=8, num_attention_heads=2)
    # A head has 32 elements: they divide those of the query, not those of the embedding.
    assert adam_mini_names(named, model) == ["query.weight", "block.1", "block.2", "embed.bias"]
