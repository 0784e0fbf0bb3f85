"""DeepSpeed's ZeRO: parameters become flat pieces, and the scales are measured before."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import BATCH, LATE, Tiny, batch, loss_of
from world import world

from sgd_sai import SGDSaI
from sgd_sai.measure_scales import measure_scales

pytest.importorskip("deepspeed", reason="pip install 'sgd-sai[deepspeed]'")

STEPS = 10
OPTIONS = {"lr": 0.5, "weight_decay": 1e-3}


def loss(model: Any, step: int, share: slice = slice(None)) -> torch.Tensor:
    return loss_of(model, batch(step)[share], step + LATE)


def engine_of(model: Tiny, optimizer: SGDSaI, stage: int) -> Any:
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(dist.get_rank()))
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": BATCH // dist.get_world_size(),
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # its default is 1
    }
    deepspeed.init_distributed("gloo")
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def zero(stage: int, scales: dict[str, float]) -> dict[str, torch.Tensor]:
    import deepspeed

    model = Tiny()
    groups = [{"params": [named]} for named in model.named_parameters()]
    optimizer = SGDSaI(groups, scale=scales, **OPTIONS)
    engine = engine_of(model, optimizer, stage)
    each = BATCH // dist.get_world_size()
    share = slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)
    for step in range(STEPS):
        engine.backward(loss(engine, step, share))
        engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def measured() -> dict[str, float]:
    model = Tiny()
    return measure_scales(model, lambda: loss(model, 0))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_equals_one_process(stage: int) -> None:
    scales = measured()
    model = Tiny()
    optimizer = SGDSaI(model.named_parameters(), scale=scales, **OPTIONS)
    for step in range(STEPS):
        loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    for found in world(2, zero, stage, scales):
        for name, p in model.named_parameters():
            assert (found[name] - p).norm() <= 1e-5 * p.norm(), name


def naive(stage: int) -> None:
    model = Tiny()
    engine = engine_of(model, SGDSaI(model.parameters(), **OPTIONS), stage)
    engine.backward(loss(engine, 0))
    with pytest.raises(ValueError, match=r"params: DeepSpeed has cut them into flat pieces.*measure_scales"):
        engine.step()


def one_group(stage: int) -> None:
    model = Tiny()
    engine = engine_of(model, SGDSaI(model.named_parameters(), scale=measured(), **OPTIONS), stage)
    engine.backward(loss(engine, 0))
    with pytest.raises(ValueError, match=r"scale: given for .* parameters of a group.*one group for each"):
        engine.step()


def both(stage: int) -> None:
    naive(stage)
    one_group(stage)


@pytest.mark.parametrize("stage", [1, 3])
def test_without_what_zero_needs_every_rank_says_so(stage: int) -> None:
    world(2, both, stage)
