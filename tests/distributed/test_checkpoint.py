"""Checkpoints that are saved by some number of ranks and loaded by another."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from test_dtensor import shard, share_of, tensor_parallel
from test_process_group import staged
from tiny import (
    BATCH,
    LATE,
    OPTIONS,
    Tiny,
    assert_same_outcome,
    one_process,
    outcome,
    quiet_step,
    train,
    whole,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import ScheduleGPipe
from world import world

from sgd_sai import UNLATCHED, SGDSaI
from sgd_sai.distributed.layout import local

#: How the state is asked for; "full" is one plain file, the others are distributed checkpoints.
KINDS = {
    "plain": StateDictOptions(),
    "offloaded": StateDictOptions(cpu_offload=True),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "async": StateDictOptions(),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
    "full from rank 0": StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True),
}
#: Before the first step; while the late layer has no scale; after.
SAVED_AFTER = (0, 1, LATE + 2)
END = LATE + 4


def kinds(step: int) -> list[str]:
    """Once all blocks have a scale, the state is as any optimizer's: one kind is enough."""
    return list(KINDS) if step <= LATE else ["plain"]


def training(width: int = 16) -> tuple[Tiny, SGDSaI, slice]:
    """As many ranks as there are; one rank alone trains without FSDP2."""
    model, ranks, rank = Tiny(width=width), dist.get_world_size(), dist.get_rank()
    if ranks > 1:
        mesh = init_device_mesh("cpu", (ranks,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    each = BATCH // ranks
    return model, SGDSaI(model.parameters(), **OPTIONS), slice(rank * each, (rank + 1) * each)


def states(model: nn.Module, optimizer: SGDSaI, options: StateDictOptions) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=options.full_state_dict)
        ),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def save(model: nn.Module, optimizer: SGDSaI, folder: Path, step: int) -> None:
    for kind in kinds(step):
        save_as(kind, model, optimizer, folder)


def save_as(kind: str, model: nn.Module, optimizer: SGDSaI, folder: Path) -> None:
    options = KINDS[kind]
    state = states(model, optimizer, options)
    if kind == "async":
        dcp.async_save(state, checkpoint_id=folder / kind).result()
    elif not options.full_state_dict:
        dcp.save(state, checkpoint_id=folder / kind)
    elif dist.get_rank() == 0:
        torch.save(state, folder / kind)
    dist.barrier()


def load(model: nn.Module, optimizer: SGDSaI, folder: Path, kind: str) -> None:
    options = KINDS[kind]
    if options.full_state_dict:
        state: dict[str, Any] = {"model": {}, "optimizer": {}}
        if not options.broadcast_from_rank0 or dist.get_rank() == 0:
            state = torch.load(folder / kind, weights_only=True)
    else:
        state = states(model, optimizer, options)
        dcp.load(state, checkpoint_id=folder / kind)
    whole = StateDictOptions(
        full_state_dict=options.full_state_dict, broadcast_from_rank0=options.broadcast_from_rank0
    )
    set_model_state_dict(model, state["model"], options=whole)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def save_on_the_way(folder: Path) -> dict[Any, dict[str, Any]]:
    """What there was when it was saved, and at the end."""
    model, optimizer, share = training()
    found = {}
    for step in range(END):
        if step in SAVED_AFTER:
            path = folder / str(step)
            path.mkdir(exist_ok=True)
            save(model, optimizer, path, step)
            found[step] = outcome(model, optimizer)
        train(model, optimizer, [step], share)
    return {**found, "end": outcome(model, optimizer)}


def load_and_go_on(folder: Path, saved: dict[Any, dict[str, Any]], same_ranks: bool) -> None:
    for step in SAVED_AFTER:
        for kind in kinds(step):
            model, optimizer, share = training()
            load(model, optimizer, folder / str(step), kind)
            assert_equal(outcome(model, optimizer), saved[step])
            late = optimizer.state[model.late.weight]
            assert (late["gsnr"] == UNLATCHED) == (step <= LATE)
            assert optimizer.param_groups[0]["lr"] == OPTIONS["lr"]
            if kind == "plain":
                train(model, optimizer, range(step, END), share)
                (assert_equal if same_ranks else assert_same_outcome)(outcome(model, optimizer), saved["end"])


def assert_equal(found: dict[str, Any], truth: dict[str, Any]) -> None:
    """Bit for bit."""
    assert (found["gsnr"], found["gsnr_max"]) == (truth["gsnr"], truth["gsnr_max"])
    for kind in ("params", "momenta"):
        assert found[kind].keys() == truth[kind].keys()
        assert all(torch.equal(found[kind][name], truth[kind][name]) for name in truth[kind])


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(4, (4, 2, 1)), (1, (4,))])
def test_saved_on_some_ranks_and_loaded_on_others(
    saved_on: int, loaded_on: tuple[int, ...], tmp_path: Path
) -> None:
    """What is loaded is what was saved; then training goes on, on as many ranks as before bit for bit."""
    saved = world(saved_on, save_on_the_way, tmp_path)[0]
    assert_same_outcome(saved["end"], one_process(steps=END))
    for ranks in loaded_on:
        world(ranks, load_and_go_on, tmp_path, saved, ranks == saved_on)


#: Kinds whose compensations are sent from rank to rank, or read into what is there.
COMPENSATED = ("plain", "flat", "full from rank 0")


def compensated() -> tuple[nn.Module, SGDSaI, slice]:
    model, _, share = training()
    model = model.bfloat16()
    return model, SGDSaI(model.named_parameters(), rounding="kahan", **OPTIONS), share


def compensations(optimizer: SGDSaI) -> list[torch.Tensor]:
    """Of all parameters, as they are saved: process groups send no int16."""
    states = sorted(optimizer.state_dict()["state"].items())
    return [whole(state["compensation"]) for _, state in states]


def save_compensations(folder: Path) -> list[torch.Tensor]:
    model, optimizer, share = compensated()
    train(model, optimizer, range(LATE + 2), share)
    for kind in COMPENSATED:
        save_as(kind, model, optimizer, folder)
    assert all(state["compensation"].dtype == torch.int16 for state in optimizer.state.values())
    return compensations(optimizer)


def load_compensations(folder: Path, saved: list[torch.Tensor]) -> None:
    for kind in COMPENSATED:
        model, optimizer, share = compensated()
        load(model, optimizer, folder, kind)
        assert all(map(torch.equal, compensations(optimizer), saved)), kind
        train(model, optimizer, range(LATE + 2, LATE + 3), share)
        assert all(state["compensation"].dtype == torch.int16 for state in optimizer.state.values())


def test_compensations_are_loaded_by_other_ranks(tmp_path: Path) -> None:
    """Bit for bit."""
    saved = world(2, save_compensations, tmp_path)[0]
    assert any(low.any() for low in saved)
    assert all(low.dtype == torch.int8 for low in saved)
    for ranks in (2, 1):
        world(ranks, load_compensations, tmp_path, saved)


#: Of a model that is spread in some way: itself, its optimizer, and the training of some steps.
Training = tuple[nn.Module, SGDSaI, Callable[[range], None]]


def in_tensor_parallel() -> Training:
    model = Tiny()
    if dist.get_world_size() > 1:
        model = tensor_parallel(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    return model, optimizer, lambda steps: train(model, optimizer, steps)


def in_hsdp() -> Training:
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    model = shard(Tiny(), mesh)
    optimizer, share = SGDSaI(model.parameters(), **OPTIONS), share_of(mesh["replicate", "shard"]._flatten())
    return model, optimizer, lambda steps: train(model, optimizer, steps, share)


def in_a_pipeline() -> Training:
    model, backward = staged(ScheduleGPipe)
    optimizer = SGDSaI(model.parameters(), process_group=dist.group.WORLD, **OPTIONS)

    def go(steps: range) -> None:
        for step in steps:
            backward(step)
            optimizer.step()
            optimizer.zero_grad()

    return model, optimizer, go


def save_and_go_on(layout: Callable[[], Training], folder: Path) -> list[dict[str, Any]]:
    model, optimizer, go = layout()
    go(range(LATE))
    dcp.save(states(model, optimizer, KINDS["flat"]), checkpoint_id=folder)
    saved = outcome(model, optimizer)
    go(range(LATE, END))
    return [saved, outcome(model, optimizer)]


def load_and_compare(layout: Callable[[], Training], folder: Path, truths: list[dict[str, Any]]) -> None:
    model, optimizer, go = layout()
    load(model, optimizer, folder.parent, "flat")
    assert_equal(outcome(model, optimizer), of(model, truths[0]))
    go(range(LATE, END))
    assert_same_outcome(outcome(model, optimizer), of(model, truths[1]))


def of(model: nn.Module, found: dict[str, Any], but: Collection[str] = ()) -> dict[str, Any]:
    """What was found for the parameters that this rank has, but some."""
    names = {name for name, _ in model.named_parameters()}.difference(but)
    mine = {
        kind: {name: value for name, value in found[kind].items() if name in names}
        for kind in ("gsnr", "params", "momenta")
    }
    return {**found, **mine}


@pytest.mark.parametrize(
    ("layout", "saved_on", "loaded_on"),
    [(in_tensor_parallel, 2, 1), (in_tensor_parallel, 1, 2), (in_hsdp, 4, 2), (in_hsdp, 2, 4),
     (in_a_pipeline, 2, 1), (in_a_pipeline, 1, 2)],
    ids=lambda given: getattr(given, "__name__", given),
)  # fmt: skip
def test_other_layouts(layout: Callable[[], Training], saved_on: int, loaded_on: int, tmp_path: Path) -> None:
    ranks = world(saved_on, save_and_go_on, layout, tmp_path / "flat")
    truths = []
    for moment in zip(*ranks, strict=True):
        assert len({rank["gsnr_max"] for rank in moment}) == 1
        merged = {
            kind: {name: value for rank in moment for name, value in rank[kind].items()}
            for kind in ("gsnr", "params", "momenta")
        }
        truths.append({**merged, "gsnr_max": moment[0]["gsnr_max"]})
    world(loaded_on, load_and_compare, layout, tmp_path / "flat", truths)


def saved_while_training_goes_on(folder: Path) -> None:
    model, optimizer, share = training()
    train(model, optimizer, range(LATE), share)
    state = states(model, optimizer, KINDS["plain"])  # gives the late layer a state too
    truth = outcome(model, optimizer)
    saving = dcp.async_save(state, checkpoint_id=folder / "plain", process_group=dist.new_group())
    train(model, optimizer, range(LATE, END), share)
    saving.result()
    end = outcome(model, optimizer)
    model, optimizer, share = training()
    load(model, optimizer, folder, "plain")
    assert_equal(outcome(model, optimizer), truth)
    train(model, optimizer, range(LATE, END), share)
    assert_equal(outcome(model, optimizer), end)


def test_saved_while_training_goes_on(tmp_path: Path) -> None:
    """What is written is what was there when it was asked for; its messages have a group of their own."""
    world(2, saved_while_training_goes_on, tmp_path)


def saved_between_measuring_and_moving(folder: Path) -> None:
    between(folder / "wide", width=16)
    between(folder / "narrow", width=256, state_dtype="8bit")


def between(folder: Path, width: int, **options: Any) -> None:
    model, optimizer, share = training(width)
    optimizer = SGDSaI(model.parameters(), measure_first=True, **OPTIONS, **options)
    train(model, optimizer, [LATE], share)
    dcp.save(states(model, optimizer, KINDS["plain"]), checkpoint_id=folder / "between" / "plain")
    train(model, optimizer, [LATE + 1], share)
    dcp.save(states(model, optimizer, KINDS["plain"]), checkpoint_id=folder / "after" / "plain")
    truth = outcome(model, optimizer)
    for saved, left in (("between", [LATE + 1]), ("after", [])):
        other = SGDSaI(model.parameters(), measure_first=True, **OPTIONS, **options)
        load(model, other, folder / saved, "plain")
        train(model, other, left, share)
        assert_equal(outcome(model, other), truth)


def test_between_measuring_and_moving(tmp_path: Path) -> None:
    """The tutorial's variant has no momentum there yet, and its checkpoints say so."""
    world(2, saved_between_measuring_and_moving, tmp_path)


#: Of the optimizer, and the dtype of the model.
PRECISIONS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "fp32 m": ({}, torch.float32),
    "fp64 m": ({"state_dtype": torch.float64}, torch.float32),
    "bf16 m": ({"state_dtype": torch.bfloat16}, torch.float32),
    "fp16 m": ({"state_dtype": torch.float16}, torch.float32),
    "no m": ({"momentum": 0.0}, torch.float32),
    "measured first": ({"measure_first": True}, torch.float32),
    "bf16, fp32 m": ({}, torch.bfloat16),
    "bf16, bf16 m, stochastic": (
        {"state_dtype": torch.bfloat16, "rounding": "stochastic", "weight_decay": 0.1},
        torch.bfloat16,
    ),
    "bf16, bf16 m, kahan": ({"state_dtype": torch.bfloat16, "rounding": "kahan"}, torch.bfloat16),
    "8-bit m": ({"state_dtype": "8bit"}, torch.float32),
}


def created_before_they_are_loaded(folder: Path, precisions: list[str]) -> None:
    for precision in precisions:
        try:
            created_before_it_is_loaded(folder / precision, *PRECISIONS[precision])
        except Exception as error:
            raise AssertionError(f"with {precision}") from error


def created_before_it_is_loaded(folder: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    """As torchtitan does it: a step with zero gradients and lr = 0, then what exists after it is loaded."""

    def made() -> tuple[nn.Module, SGDSaI, slice]:
        width = 256 if options.get("state_dtype") == "8bit" else 16  # large enough, and cut between blocks
        model, _, share = training(width)
        model = model.to(dtype)
        return model, SGDSaI(model.named_parameters(), **{**OPTIONS, **options}), share

    model, optimizer, share = made()
    train(model, optimizer, range(LATE + 2), share)
    dcp.save(states(model, optimizer, KINDS["flat"]), checkpoint_id=folder)
    train(model, optimizer, range(LATE + 2, END), share)

    other, resumed, _ = made()
    for param in other.parameters():
        param.grad = torch.zeros_like(param)
    resumed.param_groups[0]["lr"] = 0.0
    quiet_step(resumed)
    resumed.zero_grad()
    state = states(other, resumed, KINDS["flat"])
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(other, state["model"])
    set_optimizer_state_dict(other, resumed, state["optimizer"], options=KINDS["flat"])
    train(other, resumed, range(LATE + 2, END), share)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(whole(p), whole(q)), name
        for key, kept in optimizer.state[p].items():
            loaded = resumed.state[q][key]
            if not isinstance(kept, torch.Tensor):
                assert kept == loaded, (name, key)
            else:
                assert torch.equal(local(kept), local(loaded)), (name, key)


@pytest.mark.parametrize("ranks", [1, 2])
def test_created_before_it_is_loaded(ranks: int, tmp_path: Path) -> None:
    precisions = list(PRECISIONS) if ranks > 1 else ["8-bit m"]
    world(ranks, created_before_they_are_loaded, tmp_path, precisions)


def of_another_memory_format(folder: Path) -> None:
    """Momentum in 8 bits of a convolution in channels_last, in a contiguous one: the file has no strides."""

    def made(memory_format: torch.memory_format) -> tuple[nn.Module, SGDSaI]:
        torch.manual_seed(0)
        model = nn.Conv2d(20, 30, 3, bias=False).to(memory_format=memory_format)
        return model, SGDSaI(model.named_parameters(), lr=0.1, state_dtype="8bit")

    def steps(model: nn.Module, optimizer: SGDSaI, numbers: range) -> None:
        for number in numbers:  # not of a loss: a convolution's own rounding depends on the memory format
            generator = torch.Generator().manual_seed(number)
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()

    model, optimizer = made(torch.channels_last)
    steps(model, optimizer, range(3))
    dcp.save(states(model, optimizer, KINDS["plain"]), checkpoint_id=folder)
    steps(model, optimizer, range(3, 6))
    other, resumed = made(torch.contiguous_format)
    state = states(other, resumed, KINDS["plain"])
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(other, state["model"])
    set_optimizer_state_dict(other, resumed, state["optimizer"])
    steps(other, resumed, range(3, 6))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        for key in ("momentum_buffer", "momentum_absmax"):
            assert torch.equal(optimizer.state[p][key], resumed.state[q][key]), key


def test_of_another_memory_format(tmp_path: Path) -> None:
    world(1, of_another_memory_format, tmp_path)


def frozen_in_between(folder: Path) -> None:
    """A block is frozen from the start, another later; each is unfrozen after a checkpoint was loaded."""

    def made() -> tuple[Tiny, SGDSaI, slice]:
        model, optimizer, share = training()
        model.blocks[0].requires_grad_(False)
        return model, optimizer, share

    model, optimizer, share = made()
    train(model, optimizer, range(LATE, LATE + 2), share)
    model.blocks[1].requires_grad_(False)
    train(model, optimizer, range(LATE + 2, LATE + 3), share)
    dcp.save(states(model, optimizer, KINDS["plain"]), checkpoint_id=folder)
    kept = outcome(model, optimizer)

    # What was frozen later has its state in the checkpoint, and takes it along once it is unfrozen.
    other, resumed, _ = made()
    load(other, resumed, folder.parent, folder.name)
    assert_equal(outcome(other, resumed), kept)
    other.blocks[1].requires_grad_(True)
    model.blocks[1].requires_grad_(True)
    train(model, optimizer, range(LATE + 3, LATE + 5), share)
    train(other, resumed, range(LATE + 3, LATE + 5), share)
    assert_equal(outcome(other, resumed), outcome(model, optimizer))

    # What never had a state begins anew; the rest goes on.
    new, partial, _ = made()
    new.blocks[0].requires_grad_(True)
    state = states(new, partial, KINDS["plain"])
    with pytest.raises(dcp.api.CheckpointException, match="Missing key in checkpoint state_dict"):
        dcp.load(state, checkpoint_id=folder)
    dcp.load(state, checkpoint_id=folder, planner=dcp.DefaultLoadPlanner(allow_partial_load=True))
    set_model_state_dict(new, state["model"])
    set_optimizer_state_dict(new, partial, state["optimizer"])
    found = outcome(new, partial)
    first = {name for name in found["gsnr"] if name.startswith("blocks.0.")}
    assert {found["gsnr"][name] for name in first} == {UNLATCHED}
    assert_equal(of(new, found, first), of(new, kept, first))
    train(new, partial, range(LATE + 3, LATE + 5), share)
    raws = outcome(new, partial)["gsnr"]
    assert all(raws[name] != UNLATCHED for name in first)
    assert {name: raws[name] for name in kept["gsnr"]} == kept["gsnr"]


def test_frozen_in_between(tmp_path: Path) -> None:
    world(2, frozen_in_between, tmp_path / "plain")
