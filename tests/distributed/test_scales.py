"""Scales that are measured before training and given by name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_dtensor import tensor_parallel
from tiny import BATCH, LATE, OPTIONS, Tiny, assert_same_outcome, batch, loss_of, outcome, train
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from world import world

from sgd_sai import UNLATCHED, GSNRRecorder, SGDSaI, measure_scales


def loss(model: nn.Module) -> torch.Tensor:
    return loss_of(model, batch(0), LATE)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))


def loss_of_net(model: nn.Module) -> torch.Tensor:
    return model(torch.randn(16, 6, generator=torch.Generator().manual_seed(1))).square().mean()


def test_they_are_what_the_optimizer_would_measure() -> None:
    """Through JSON, and training goes on as if it had measured them; nothing of the model changes."""
    model, other = Tiny(), Tiny()
    scales = json.loads(json.dumps(measure_scales(model, lambda: loss(model))))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    optimizer = SGDSaI(model.named_parameters(), scale=scales, **OPTIONS)
    truth = SGDSaI(other.parameters(), **OPTIONS)
    for each, of in ((model, optimizer), (other, truth)):
        for step in range(LATE, LATE + 5):
            loss_of(each, batch(step - LATE), step).backward()
            of.step()
            of.zero_grad()
    assert_same_outcome(outcome(model, optimizer), outcome(other, truth))


def test_a_loss_and_its_function_are_the_same() -> None:
    model = net()
    assert measure_scales(model, loss_of_net(model)) == measure_scales(model, lambda: loss_of_net(model))


def test_a_parameter_without_gradient_gets_the_limit() -> None:
    model = net()
    model.register_parameter("idle", nn.Parameter(torch.ones(5)))
    with pytest.warns(UserWarning, match=r"1 parameter\(s\) have no finite, non-zero gradient .*: idle"):
        assert measure_scales(model, loss_of_net(model))["idle"] == math.sqrt(5)


def test_nothing_latches_before_its_first_gradient() -> None:
    """Asking for the state before training stays harmless, and m₁ is the first gradient."""
    model = net()
    optimizer = SGDSaI(model.named_parameters(), lr=0.1, scale=measure_scales(model, loss_of_net(model)))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert {state["gsnr"] for state in optimizer.state.values()} == {UNLATCHED}
    optimizer.zero_grad()
    loss_of_net(model).backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(optimizer.state[model[0].weight]["momentum_buffer"], gradient)


def test_a_resumed_run_takes_its_own_scales() -> None:
    model, resumed = net(), net()
    scales = measure_scales(model, loss_of_net(model))
    optimizer = SGDSaI(model.named_parameters(), lr=0.1, scale=scales)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["scale"] == "given by name"
    with pytest.raises(ValueError, match="its scale rule is given by name; give that rule to the optimizer"):
        SGDSaI(resumed.named_parameters()).load_state_dict(saved)
    other = SGDSaI(resumed.named_parameters(), scale=scales)
    other.load_state_dict(saved)
    for each, of in ((model, optimizer), (resumed, other)):
        for _ in range(3):
            of.zero_grad()
            loss_of_net(each).backward()
            of.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_piece_starts_at_its_own_first_gradient() -> None:
    """The known difference to one process: where a wrapper has cut a parameter, each piece has its own m₁."""
    rows = [nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    optimizers = [SGDSaI([("embedding", piece)], scale={"embedding": 3.0}) for piece in rows]
    for first in (True, False):
        for piece, optimizer in zip(rows, optimizers, strict=True):
            piece.grad = torch.zeros(2, 3) if first and piece is rows[1] else torch.ones(2, 3)
            optimizer.step()
    momenta = [o.state[p]["momentum_buffer"] for o, p in zip(optimizers, rows, strict=True)]
    torch.testing.assert_close(momenta[1], torch.ones(2, 3))  # as one block it would be 0.1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"0.weigth": 1.0}, "scale: names 1 that are no parameters: 0.weigth; allowed"),
    "missing": ({"0.bias": None}, "scale: lacks 1 of the parameters: 0.bias"),
    "zero": ({"0.bias": 0.0}, "scale: given 0.0 for '0.bias'; allowed: .* positive, finite numbers by parameter name"),
    "NaN": ({"0.bias": math.nan}, "scale: given nan for '0.bias'"),
    "text": ({"0.bias": "1"}, "scale: given '1' for '0.bias'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_scales(bad: str) -> None:
    model = net()
    scales: dict[str, Any] = {**measure_scales(model, loss_of_net(model)), **BAD[bad][0]}
    with pytest.raises(ValueError, match=BAD[bad][1]):
        SGDSaI(model.named_parameters(), scale={k: v for k, v in scales.items() if v is not None})


@pytest.mark.parametrize("option", [{"split": 2}, {"blocks": "group"}, {"normalize": "rms"}], ids=str)
def test_options_that_scales_by_name_do_not_allow(option: dict[str, Any]) -> None:
    model = net()
    with pytest.raises(ValueError, match=f"{next(iter(option))}: given .* with a scale by name; allowed: "):
        SGDSaI(model.named_parameters(), scale=measure_scales(model, loss_of_net(model)), **option)


def test_parameters_without_names() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"parameters without names; allowed: model.named_parameters\(\)"):
        SGDSaI(model.parameters(), scale=measure_scales(model, loss_of_net(model)))


@pytest.mark.parametrize("given", [1.0, torch.ones(2, requires_grad=True), torch.ones(())], ids=str)
def test_bad_loss(given: Any) -> None:
    with pytest.raises(ValueError, match=r"loss: given .*; allowed: one element"):
        measure_scales(net(), lambda: given)


def sharded() -> None:
    """The DTensors of FSDP2 are measured as a whole."""
    model, mesh = Tiny(), init_device_mesh("cpu", (2,))
    truth = measure_scales(model, loss(model))
    fully_shard(model, mesh=mesh)
    # Every rank has the same batch, so that the sum over ranks is 2 × the gradient, and the mean the same.
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    loss(model).backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert optimizer.state[p]["gsnr"] == pytest.approx(truth[name], rel=1e-6)
    with CommDebugMode() as collectives:
        optimizer.step()
    assert collectives.get_total_counts() == 0


def stages() -> None:
    """Each stage is given the scales of the whole model, and has its maximum without measuring."""
    scales = {"first": 3.0, "second": 8.0}
    name = "first" if dist.get_rank() == 0 else "second"
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = SGDSaI([(name, param)], lr=0.1, scale=scales, process_group=dist.group.WORLD)
    param.grad = torch.ones(4, 3)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.ones(4, 3) * (1 - 0.1 * scales[name] / 8.0))


def flat_parameters() -> None:
    """FullyShardedDataParallel's pieces are refused by name, and taken with scales by name."""
    model = Tiny()
    scales = measure_scales(model, loss(model))
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    each = BATCH // dist.get_world_size()
    share = slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)
    loss_of(wrapped, batch(0)[share], LATE).backward()
    with pytest.raises(ValueError, match=r"params: FullyShardedDataParallel has cut them into flat pieces"):
        SGDSaI(wrapped.parameters()).step()
    named = [(name.replace("_fsdp_wrapped_module.", ""), p) for name, p in wrapped.named_parameters()]
    optimizer = SGDSaI(named, scale=scales, **OPTIONS)
    train(wrapped, optimizer, range(LATE, LATE + 5), share)
    truth = Tiny()
    of_truth = SGDSaI(truth.named_parameters(), scale=scales, **OPTIONS)
    loss_of(truth, batch(0), LATE).backward()  # the gradient above is added to the first one, here as there
    train(truth, of_truth, range(LATE, LATE + 5))
    with FullyShardedDataParallel.summon_full_params(wrapped):
        for p, q in zip(truth.parameters(), model.parameters(), strict=True):
            assert (p - q).norm() <= 1e-5 * p.norm()


def partial_gradients() -> None:
    """Tensor parallelism leaves gradients that are sums still to be made over the ranks."""
    model, mesh = Tiny(()), init_device_mesh("cpu", (2,))
    truth = measure_scales(model, loss(model))
    parallel = tensor_parallel(model, mesh)
    gradients = torch.autograd.grad(loss(parallel), list(parallel.parameters()))
    assert any(p.is_partial() for g in gradients for p in g.placements)
    recorder = GSNRRecorder(parallel)
    optimizer = SGDSaI(parallel.parameters(), **OPTIONS)
    recorder.attach(optimizer)
    found = measure_scales(parallel, lambda: loss(parallel))
    loss(parallel).backward()
    optimizer.step()
    recorded = {row["block"]: row["gsnr"] for row in recorder.rows}
    for name in truth:
        assert found[name] == pytest.approx(truth[name], rel=1e-5)
        assert recorded[name] == pytest.approx(truth[name], rel=1e-5)


def bad_on_one_rank() -> None:
    """What is wrong on one rank is an error on both, and none waits for the other."""
    rank, group = dist.get_rank(), dist.group.WORLD
    good = {"weight": 1.0, "bias": 2.0}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"scale": good if rank == 0 else {"weight": 1.0}}, "lacks 1 of the parameters: bias"),
        ({"scale": {**good, "wieght": 100.0}}, "no parameters: wieght"),
        (
            {"scale": {**good, "bias": 2.0 + rank}},
            "rank 1 of process_group is given other scales than rank 0",
        ),
        ({"lr": 0.1 if rank == 0 else -1.0}, "lr: given -1.0"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            SGDSaI(nn.Linear(2, 2).named_parameters(), process_group=group, **options)
    SGDSaI(nn.Linear(2, 2).named_parameters(), process_group=group, scale=good)


SCENARIOS = [sharded, stages, flat_parameters, partial_gradients, bad_on_one_rank]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda f: f.__name__)
def test_on_two_ranks(scenario: Any) -> None:
    world(2, scenario)
