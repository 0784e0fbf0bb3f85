"""Ranks that own different parameters: pipeline and expert parallelism, ZeroRedundancyOptimizer."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import (
    BATCH,
    OPTIONS,
    STEPS,
    VOCABULARY,
    Block,
    Counting,
    Tiny,
    assert_same_outcome,
    batch,
    loss_of,
    one_process,
    outcome,
    quiet_step,
    train,
    whole,
)
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.hierarchical_model_averager import HierarchicalModelAverager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from world import world

from sgd_sai import UNLATCHED, SGDSaI, gradient_release
from sgd_sai.distributed.collectives import raised_together

SHAPES = [(30, 20), (5,), (8, 8), (), (3, 4), (16, 2)]
RANKS = 2


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor | None]:
    """Of all parameters; block 4 is an expert that no token chooses before step 3."""
    generator = torch.Generator().manual_seed(100 + step)
    grads: list[torch.Tensor | None] = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if step < 3:
        grads[4] = None
    return grads


def step_all(optimizer: Any, params: list[nn.Parameter], grads: list[torch.Tensor | None]) -> None:
    for param, gradient in zip(params, grads, strict=True):
        param.grad = gradient
    quiet_step(optimizer)


def own(every: list[Any]) -> list[Any]:
    """This rank's stage; the second has the largest block's g-SNR only from the first."""
    return every[: len(SHAPES) // 2] if dist.get_rank() == 0 else every[len(SHAPES) // 2 :]


def stages(options: dict[str, Any], idle: int) -> None:
    """The second stage has no gradient in the first `idle` steps."""
    together, apart = parameters(), own(parameters())
    truth = SGDSaI(together, lr=0.1, **options)
    optimizer = SGDSaI(apart, lr=0.1, process_group=dist.group.WORLD, **options)
    collectives = []
    for step in range(6):
        grads = gradients(step)
        if step < idle:
            grads[len(SHAPES) // 2 :] = [None] * (len(SHAPES) - len(SHAPES) // 2)
        step_all(truth, together, grads)
        with CommDebugMode() as comm:
            step_all(optimizer, apart, own(grads))
        collectives.append(comm.get_total_counts())
        for key in ("gsnr_max", "gsnr_rms"):
            assert optimizer.param_groups[0][key] == pytest.approx(truth.param_groups[0][key], rel=1e-12)
    assert collectives == [1, 0, 0, 0, 0, 0]
    for p, q in zip(own(together), apart, strict=True):
        torch.testing.assert_close(p, q)


def the_maximum_is_everyones() -> None:
    for options in ({}, {"normalize": "rms"}, {"scale": "sqrt_d"}, {"momentum": 0.0}):
        stages(options, idle=0)
    stages({}, idle=1)
    stages({}, idle=2)


def nobody_has_a_gradient() -> None:
    """Each step asks again until somebody has latched: zeros, NaNs and empty stages hang nobody."""
    params = own(parameters())
    optimizer = SGDSaI(params, lr=0.1, process_group=dist.group.WORLD)
    collectives = []
    for step in range(6):
        grads = own(gradients(step))
        if step < 1:
            grads = [None] * len(grads)
        elif step < 2:
            grads = [None if g is None else torch.zeros_like(g) for g in grads]
        elif step < 3 or dist.get_rank() == 0:
            grads = [None if g is None else torch.full_like(g, math.nan) for g in grads]
        with CommDebugMode() as comm:
            step_all(optimizer, params, grads)
        collectives.append(comm.get_total_counts())
    assert collectives == [1, 1, 1, 1, 0, 0]
    latched = {optimizer.state[p]["gsnr"] != UNLATCHED for p in params}
    assert latched == {dist.get_rank() == 1}
    assert optimizer.param_groups[0]["gsnr_max"] > 0


def a_rank_without_parameters() -> None:
    params = parameters() if dist.get_rank() == 1 else []
    optimizer = SGDSaI([{"params": params}], lr=0.1, process_group=dist.group.WORLD)
    step_all(optimizer, params, gradients(0) if params else [])
    assert optimizer.param_groups[0]["gsnr_max"] > 20


def copies() -> None:
    """The group is no state: a copy and a loaded state keep what was found, not whom to ask."""
    params = own(parameters())
    optimizer = SGDSaI(params, lr=0.1, process_group=dist.group.WORLD)
    assert copy.deepcopy(optimizer).process_group is None
    assert pickle.loads(pickle.dumps(optimizer)).process_group is None
    step_all(optimizer, params, own(gradients(0)))
    assert optimizer.process_group is dist.group.WORLD
    other = SGDSaI(params, process_group=dist.group.WORLD)
    other.load_state_dict(optimizer.state_dict())
    assert other.process_group is dist.group.WORLD
    assert other.param_groups[0]["gsnr_max"] == optimizer.param_groups[0]["gsnr_max"]
    with CommDebugMode() as comm:
        step_all(other, params, own(gradients(1)))
    assert comm.get_total_counts() == 0


def bad_input() -> None:
    params = parameters()
    with pytest.raises(TypeError, match="process_group: given 'all'; allowed: None or a"):
        SGDSaI(params, process_group="all")
    alone = dist.new_group([0])
    if dist.get_rank() == 0:
        SGDSaI(params, process_group=alone)
    else:
        with pytest.raises(ValueError, match="process_group: this rank is not a member of it"):
            SGDSaI(params, process_group=alone)
    each = [dist.new_group([rank]) for rank in range(RANKS)][dist.get_rank()]
    mesh = init_device_mesh("cpu", (RANKS,))
    spread = nn.Parameter(distribute_tensor(torch.randn(4, 2), mesh, [Shard(0)]))
    missing = 1 - dist.get_rank()
    with pytest.raises(ValueError, match=rf"process_group: has the ranks .* lies on \[{missing}\] too"):
        SGDSaI([("w", spread)], process_group=each)
    with pytest.raises(
        ValueError, match=r"differentiable: given True for parameter 'w' of shape .*, a DTensor"
    ):
        SGDSaI([("w", spread)], differentiable=True)


def scales_that_are_lost() -> None:
    """A rank that has lost its scales says so; all of them measure again together, by one collective."""
    together, apart = parameters(), own(parameters())
    truth = SGDSaI(together, lr=0.1)
    optimizer = SGDSaI(apart, lr=0.1, process_group=dist.group.WORLD)
    for step in range(2):
        grads = gradients(step)
        step_all(truth, together, grads)
        step_all(optimizer, apart, own(grads))
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.state.clear()
    with pytest.raises(
        ValueError, match=r"lost all scales of this rank.*optimizer.measure_again\(\) on every"
    ):
        step_all(optimizer, apart, own(gradients(2)))
    with pytest.raises(ValueError, match="lost all scales of this rank"):
        optimizer.state_dict()
    extra = {"params": [nn.Parameter(torch.ones(3))]}
    with pytest.raises(ValueError, match="lost all scales of this rank"):
        optimizer.add_param_group(extra)
    assert len(optimizer.param_groups) == 1
    optimizer.measure_again()
    truth.state.clear()
    collectives = []
    for step in range(2, 5):
        grads = gradients(step)
        step_all(truth, together, grads)
        with CommDebugMode() as comm:
            step_all(optimizer, apart, own(grads))
        collectives.append(comm.get_total_counts())
    assert collectives == [1, 0, 0]
    for p, q in zip(own(together), apart, strict=True):
        torch.testing.assert_close(p, q)


def a_copy_of_a_rank_that_waits() -> None:
    """Its first block comes after the maximum is known, which the groups of the copy say."""
    params = own(parameters())
    optimizer = SGDSaI(params, lr=0.1, process_group=dist.group.WORLD)
    grads = gradients(0)
    step_all(optimizer, params, own(grads) if dist.get_rank() == 0 else [None] * len(params))
    known = optimizer.normalizers
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        again.process_group = dist.group.WORLD
        copies = again.param_groups[0]["params"]
        step_all(again, copies, [torch.ones_like(p) + torch.randn(p.shape) for p in copies])
        assert again.normalizers == known
        assert all(again.state[p]["gsnr_max"] == known["gsnr_max"] for p in copies)


SCENARIOS = [the_maximum_is_everyones, nobody_has_a_gradient, a_rank_without_parameters, copies, bad_input]
SCENARIOS += [scales_that_are_lost, a_copy_of_a_rank_that_waits]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda f: f.__name__)
def test_process_group(scenario: Any) -> None:
    world(RANKS, scenario)


def pipeline_of_fsdp() -> list[Any]:
    """Two stages, each sharded over two ranks: g-SNR over the stage, its maximum over all."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))
    together = parameters()
    half = len(SHAPES) // 2
    mine = slice(0, half) if mesh.get_local_rank("stage") == 0 else slice(half, None)
    placements = [[Shard(0)] if len(shape) else [Replicate()] for shape in SHAPES]
    apart = [
        nn.Parameter(distribute_tensor(p.detach(), mesh["data"], placed))
        for p, placed in zip(together[mine], placements[mine], strict=True)
    ]
    truth = SGDSaI(together, lr=0.1)
    optimizer = SGDSaI(apart, lr=0.1, process_group=dist.group.WORLD)
    for step in range(5):
        grads = gradients(step)
        step_all(truth, together, grads)
        shared = [
            None if g is None else distribute_tensor(g, mesh["data"], placed)
            for g, placed in zip(grads[mine], placements[mine], strict=True)
        ]
        step_all(optimizer, apart, shared)
    for p, q in zip(together[mine], apart, strict=True):
        torch.testing.assert_close(whole(q), p.detach())


def test_pipeline_of_fsdp2_stages() -> None:
    world(4, pipeline_of_fsdp)


WIDTH = 16


def layers() -> nn.Sequential:
    """As many parameters in each half; the largest G_snr is in one of them only."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY)
    return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), Block(WIDTH), Block(WIDTH), head)


def next_token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def staged(schedule: Any) -> tuple[nn.ModuleDict, Callable[[int], None]]:
    """This rank's stage in torch's own pipeline, and what it does forward and backward in a step."""
    rank, ranks, together = dist.get_rank(), dist.get_world_size(), layers()
    mine = nn.ModuleDict({str(i): layer for i, layer in enumerate(together) if i * ranks // 4 == rank})
    stage = PipelineStage(nn.Sequential(*mine.values()), rank, ranks, torch.device("cpu"))
    pipeline = schedule(stage, n_microbatches=4, loss_fn=next_token_loss)

    def backward(step: int) -> None:
        tokens = batch(step)
        pipeline.step(*([tokens[:, :-1]] if rank == 0 else []), target=tokens[:, 1:])

    return mine, backward


def scheduled(schedule: Any) -> Any:
    stage, backward = staged(schedule)
    optimizer = SGDSaI(stage.parameters(), process_group=dist.group.WORLD, **OPTIONS)
    collectives = []
    for step in range(STEPS):
        backward(step)
        with CommDebugMode() as comm:
            optimizer.step()
        collectives.append(comm.get_total_counts())
        optimizer.zero_grad()
    assert collectives == [1] + [0] * (STEPS - 1)
    return outcome(stage, optimizer)


@pytest.mark.parametrize("schedule", [ScheduleGPipe, Schedule1F1B], ids=lambda kind: kind.__name__)
def test_pipeline_schedule_equals_one_process(schedule: Any) -> None:
    model = layers()
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    for step in range(STEPS):
        tokens = batch(step)
        next_token_loss(model(tokens[:, :-1]), tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    first, second = world(RANKS, scheduled, schedule)
    assert first["gsnr_max"] == second["gsnr_max"]
    both = {key: {**first[key], **second[key]} for key in ("gsnr", "params", "momenta")}
    assert_same_outcome({**both, "gsnr_max": first["gsnr_max"]}, outcome(model, optimizer))


def ddp() -> Any:
    model = DistributedDataParallel(Tiny(()), find_unused_parameters=True)
    counting = Counting(SGDSaI(model.parameters(), **OPTIONS))
    train(model, counting, share=share())
    assert not any(counting.collectives)
    return outcome(model, counting.optimizer)


def accumulating() -> Any:
    """Two microbatches a step; the first one's gradients are not sent."""
    model = DistributedDataParallel(Tiny(()), find_unused_parameters=True)
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    for step in range(STEPS):
        first, second = batch(step)[share()].chunk(2)
        with model.no_sync():
            (loss_of(model, first, step) / 2).backward()
        (loss_of(model, second, step) / 2).backward()
        quiet_step(optimizer)
        optimizer.zero_grad()
    return outcome(model, optimizer)


def zero() -> Any:
    """Each rank steps and keeps the momentum of a part of the parameters."""
    model = DistributedDataParallel(Tiny(()), find_unused_parameters=True)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), functools.partial(SGDSaI, process_group=dist.group.WORLD), **OPTIONS
    )
    train(model, optimizer, range(10), share())
    optimizer.consolidate_state_dict(0)
    saved = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved)
    again = ZeroRedundancyOptimizer(
        model.parameters(), functools.partial(SGDSaI, process_group=dist.group.WORLD), lr=9.0
    )
    again.load_state_dict(saved[0])
    train(model, again, range(10, 20), share())
    again.consolidate_state_dict(0)
    if dist.get_rank() > 0:
        return {name: p.detach() for name, p in model.named_parameters()}
    state = again.state_dict()["state"]
    names = [name.removeprefix("module.") for name, _ in model.named_parameters()]
    return {
        "gsnr": {names[index]: of_param["gsnr"] for index, of_param in state.items()},
        "gsnr_max": again.param_groups[0]["gsnr_max"],
        "params": {name.removeprefix("module."): p.detach() for name, p in model.named_parameters()},
        "momenta": {names[index]: of_param["momentum_buffer"] for index, of_param in state.items()},
    }


def zero_that_is_not_told(optimizer_class: Any, group_is_given: bool, again: bool) -> None:
    """Rank 1 alone has the largest G_snr; the scales of all are relative to it."""
    together, cut = parameters(), parameters()
    truth = SGDSaI(together, **OPTIONS)
    group = {"process_group": dist.new_group([0, 1])} if group_is_given else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = ZeroRedundancyOptimizer(cut, optimizer_class, **group, **OPTIONS)
    for step in range(10):
        grads = gradients(step)
        step_all(truth, together, grads)
        step_all(optimizer, cut, grads)
        if again and step == 4:
            optimizer.consolidate_state_dict(0)
            saved = [optimizer.state_dict() if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(saved)
            optimizer = ZeroRedundancyOptimizer(cut, optimizer_class, **group, lr=9.0)
            optimizer.load_state_dict(saved[0])
    assert optimizer.optim.process_group is (group["process_group"] if group else dist.group.WORLD)
    assert len(optimizer.optim.param_groups[0]["params"]) < len(SHAPES)
    for p, q in zip(together, cut, strict=True):
        torch.testing.assert_close(q, p)


class Sub(SGDSaI):
    """A user's own, whose constructor stands between."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize(
    ("optimizer_class", "group_is_given", "again"),
    [(SGDSaI, False, True), (Sub, True, False), (functools.partial(SGDSaI, maximize=False), False, False)],
    ids=["class", "subclass", "partial"],
)
def test_zero_redundancy_optimizer_need_not_tell_its_group(
    optimizer_class: Any, group_is_given: bool, again: bool
) -> None:
    world(RANKS, zero_that_is_not_told, optimizer_class, group_is_given, again)


def averaging(averager: Any, options: dict[str, Any]) -> list[str]:
    """What is told where each rank has its own gradients from the averager's first step on."""
    model = nn.Linear(4, 3)
    optimizer = PostLocalSGDOptimizer(SGDSaI(model.named_parameters(), lr=0.1, **options), averager)
    torch.manual_seed(dist.get_rank())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()
    return [str(of.message) for of in told if "PostLocalSGD" in str(of.message)]


def not_averaged_at_first() -> None:
    cases: list[tuple[int, dict[str, Any], bool]] = [
        (0, {}, True),
        (0, {"normalize": False}, True),
        (0, {"scale": "sqrt_d", "normalize": "rms"}, True),
        (0, {"scale": "sqrt_d"}, False),
        (0, {"scale": {"weight": 3.0, "bias": 2.0}}, False),
        (1, {}, False),
    ]
    for warmup, options, warns in cases:
        for averager in (
            PeriodicModelAverager(period=2, warmup_steps=warmup),
            HierarchicalModelAverager({2: RANKS}, warmup_steps=warmup),
        ):
            told = averaging(averager, options)
            assert len(told) == warns, (warmup, options, told)
            assert all("each rank has measured a gradient of its own" in message for message in told)


def test_gradients_that_are_not_averaged_at_first() -> None:
    world(RANKS, not_averaged_at_first)


def share() -> slice:
    each = BATCH // dist.get_world_size()
    return slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)


@pytest.mark.parametrize(("scenario", "ranks"), [(ddp, 4), (accumulating, 2)], ids=["ddp", "accumulating"])
def test_ddp_equals_one_process(scenario: Any, ranks: int) -> None:
    truth = one_process(())
    for found in world(ranks, scenario):
        assert_same_outcome(found, truth)


def released_under_ddp(**options: Any) -> tuple[str, str]:
    inner = Tiny()
    model = DistributedDataParallel(inner, **options)
    optimizer = SGDSaI(inner.parameters(), **OPTIONS, measure_first=True)
    with pytest.raises(ValueError, match="model: given a DistributedDataParallel") as at_once:
        gradient_release(model, optimizer)
    gradient_release(inner, optimizer)
    with pytest.raises(RuntimeError, match="DistributedDataParallel") as in_backward:
        train(model, optimizer)
    return str(at_once.value), str(in_backward.value)


@pytest.mark.parametrize("options", [{}, {"static_graph": True, "gradient_as_bucket_view": True}], ids=str)
def test_gradient_release_is_refused_under_ddp(options: dict[str, Any]) -> None:
    """A hook of a parameter sees the gradient of one rank, and DDP's buckets hold all gradients anyway."""
    for at_once, in_backward in world(RANKS, functools.partial(released_under_ddp, **options)):
        assert "allowed: a model on one rank, or cut by fully_shard" in at_once
        assert "and DistributedDataParallel need all of them after backward" in in_backward


def test_zero_redundancy_optimizer_equals_one_process() -> None:
    found, other = world(2, zero)
    assert_same_outcome(found, one_process(()))
    for name, tensor in found["params"].items():
        assert torch.equal(tensor, other[f"module.{name}"])


def raise_on_rank_1(message: str) -> str:
    """What is raised on this rank where the input of rank 1 alone is wrong."""
    try:
        with raised_together(dist.group.WORLD):
            if dist.get_rank() == 1:
                raise ValueError(message)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


@pytest.mark.parametrize("message", ["lr: given −1", ""])
def test_an_error_on_one_rank_is_raised_on_all_whatever_it_says(message: str) -> None:
    assert world(RANKS, raise_on_rank_1, message) == [f"{message} (on rank 1 of process_group)", message]
