"""The state of the lab's optimizers as it is measured, and the weights at which they are evaluated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sgd_sai.lab import optimizers

SHRINK = 1e-3


@pytest.fixture(autouse=True)
def _installed(request):
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    try:
        optimizers.check_installed([name] if name else [])
    except ValueError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", ["adamw-8bit", "adamw-8bit-torchao"])
def test_bytes_of_an_8_bit_state(name):
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


@pytest.mark.parametrize(
    ("name", "per_parameter"),
    [("sgd-sai", 4), ("sgd", 4), ("adamw", 8), ("sgd-sai-bf16", 2), ("sgd-sai-sqrt-d", 4), ("lion", 4)],
)
def test_bytes_of_the_state(name, per_parameter):
    model = nn.Linear(100, 50)
    optimizer = optimizers.build(name, model, 1e-3, SHRINK)
    model(torch.randn(4, 100)).sum().backward()
    optimizer.step()
    # Beyond the moments there are at most three numbers for each of the two tensors.
    assert 0 <= optimizers.state_bytes(optimizer) - per_parameter * 5050 <= 3 * 16
