"""The optimizers of the study: one rule of weight decay for all, and the bytes of their states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sgd_sai.lab import optimizers
from sgd_sai.lab.optimizers import OPTIMIZERS

SHRINK = 1e-3


@pytest.mark.parametrize("lr", [0.01, 1.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
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


@pytest.mark.parametrize(("name", "per_parameter"), [("sgd-sai", 4), ("sgd", 4), ("adamw", 8)])
def test_bytes_of_the_state(name, per_parameter):
    model = nn.Linear(100, 50)
    optimizer = optimizers.build(name, model, 1e-3, SHRINK)
    model(torch.randn(4, 100)).sum().backward()
    optimizer.step()
    # Beyond the moments there is at most one number for each of the two tensors.
    assert 0 <= optimizers.state_bytes(optimizer) - per_parameter * 5050 <= 16
