"""One run in several processes, as torchrun starts them: each, a rank, computes its share of every batch.

All ranks do the same things in the same order, on the same random numbers. Rank 0 alone writes the files that
are kept, and tells the others its values; they write into a folder that is thrown away. Outside of torchrun
there is one rank, and nothing here does anything.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sgd_sai.cli import CommandError
from sgd_sai.lab.tasks.problem import Batch

T = TypeVar("T")

_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(hours=3)  # while rank 0 trains a model that a task starts from
# Seconds. DTensor's caches keep gloo's threads alive. A thread that still holds a tensor needs Python to let
# it go, and aborts the process if Python is ending by then (torch 2.13: one run of FSDP2 in fourteen).
_PARTING = 0.2


def started() -> int:
    """Return how many ranks torchrun has started; CommandError if WORLD_SIZE is no number."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise CommandError(f"WORLD_SIZE: given {given!r}; allowed: a number of ranks, or unset it")
    return int(given)


@contextmanager
def group() -> Iterator[None]:
    """Bring the ranks together; they part at the end, or when one of them fails."""
    if started() == 1:
        yield
        return
    if missing := [name for name in _OF_TORCHRUN if not os.environ.get(name)]:
        raise CommandError(
            f"WORLD_SIZE: given {started()} without {missing[0]}; allowed: all that torchrun sets, or nothing"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    yield
    part()


def part() -> None:
    """Part for good, after all that the ranks do together."""
    dist.barrier()
    dist.destroy_process_group()
    time.sleep(_PARTING)


def count() -> int:
    """Return how many ranks are together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Return whether this is the rank whose files are kept."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def first_alone() -> Iterator[None]:
    """Let rank 0 do it, then the others, who find what it left."""
    if not first():
        dist.barrier()
    yield
    if first() and count() > 1:
        dist.barrier()


def told(value: T) -> T:
    """Return the `value` of rank 0, on each."""
    if count() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values)
    told: T = values[0]
    return told


def decided(decide: Callable[[], T]) -> T:
    """Return what `decide` returns on rank 0, on each; if it raises there, each raises the same.

    For all that depends on files: one rank might see them as another process leaves them a moment later, and
    end, while the others wait for it.
    """
    if count() == 1:
        return decide()
    value: Any = None
    raised: Exception | None = None
    if first():
        try:
            value = decide()
        except Exception as error:
            raised = error
    value, raised = told((value, raised))
    if raised is not None:
        raise raised
    result: T = value
    return result


@contextmanager
def own(folder: Path) -> Iterator[Path]:
    """Yield `folder` on rank 0, elsewhere one that is thrown away."""
    if first():
        yield folder
        return
    with tempfile.TemporaryDirectory() as thrown_away:
        yield Path(thrown_away)


def share(batch: Batch) -> Batch:
    """Return the part of a batch that this rank computes."""
    if count() == 1:
        return batch
    return tuple(torch.tensor_split(each, count())[dist.get_rank()] for each in batch)


def total(value: Tensor) -> Tensor:
    """Return the sum over the ranks, on each."""
    if count() > 1:
        dist.all_reduce(value)
    return value


def spread(model: nn.Module, fsdp: bool) -> nn.Module:
    """Return the module to train: `model` itself, sharded, if `fsdp`; else wrapped to average gradients."""
    if count() == 1:
        return model
    if not fsdp:
        return DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for block in _repeated(model):
        fully_shard(block)
    fully_shard(model)
    return model


def whole_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the states of a sharded model and of its optimizer, gathered on rank 0; empty on the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(model, optimizer, options=options)


def load_whole_state(
    model: nn.Module, optimizer: Optimizer, of_model: dict[str, Any], of_optimizer: dict[str, Any]
) -> None:
    """Load the states of `whole_state`, which every rank has, into a sharded model; the rest of it stays."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    options = StateDictOptions(full_state_dict=True, strict=False)
    set_state_dict(
        model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer, options=options
    )


def _repeated(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of which a model has several, that is, the members of its outermost module lists."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _repeated(child)
