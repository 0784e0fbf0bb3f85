"""Many machines: what a rank holds of a tensor that is spread over them, and sums over all of it.

A `DTensor` (FSDP2, HSDP, tensor parallelism) is one tensor on a mesh of ranks. A step works on the local
part alone. Only while blocks are without a scale do ranks talk, to measure the gradients of the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_spread(tensor: Tensor) -> TypeIs[DTensor]:
    """True for a DTensor. There is none before its module, which is slow to import, has been imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without a copy; a plain tensor as it is."""
    if not is_spread(tensor):
        return tensor
    part: Any = tensor._local_tensor  # to_local() makes a view of a parameter at each call
    here: Tensor = part.wait() if hasattr(part, "wait") else part  # a communication may be under way
    return here


def laid_out_as(tensor: Tensor, param: Tensor) -> Tensor:
    """`tensor`, of the parameter's shape, spread as the parameter is: a partial gradient is summed."""
    if not is_spread(param):
        return tensor.full_tensor() if is_spread(tensor) else tensor
    if not is_spread(tensor):
        from torch.distributed.tensor import distribute_tensor

        # Each rank has the whole and takes its own part: nothing is sent.
        device, mesh = local(param).device, param.device_mesh
        return distribute_tensor(tensor.to(device), mesh, param.placements, src_data_rank=None)
    if tensor.placements == param.placements and tensor.device_mesh == param.device_mesh:
        return tensor
    if tensor.device_mesh != param.device_mesh:
        return laid_out_as(tensor.full_tensor(), param)
    return tensor.redistribute(placements=param.placements)


def summed(tensor: Tensor) -> Tensor:
    """A DTensor of partial sums as the sum, on every rank of the mesh dims over which it was partial."""
    if not is_spread(tensor) or not any(placed.is_partial() for placed in tensor.placements):
        return tensor
    from torch.distributed.tensor import Replicate

    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def sharing_groups(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """The groups of ranks over which a tensor is cut: those of the mesh dims that do not replicate it."""
    if not is_spread(tensor):
        return ()
    mesh = tensor.device_mesh
    groups = (mesh.get_group(i) for i, placed in enumerate(tensor.placements) if not placed.is_replicate())
    return tuple(group for group in groups if group.size() > 1)


def _local_rows(tensor: Tensor, parts: int) -> list[int]:
    """How many rows of each of `parts` equal parts along dim 0 this rank holds; they follow each other."""
    rows = tensor.size(0) // parts
    if not is_spread(tensor):
        return [rows] * parts
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    begin, end = offset[0], offset[0] + shape[0]
    return [max(0, min(end, (part + 1) * rows) - max(begin, part * rows)) for part in range(parts)]


def local_parts(tensor: Tensor, parts: int) -> list[Tensor]:
    """Views of what this rank holds of `parts` equal parts along dim 0."""
    here = local(tensor)
    if parts == 1:
        return [here]
    views, begin = [], 0
    for rows in _local_rows(tensor, parts):  # one by one: autograd lets no output of `split` be written to
        views.append(here[begin : begin + rows])
        begin += rows
    return views


@dataclass(frozen=True, slots=True)
class Part:
    """What this rank holds of a gradient, and of what: `n` reals over `groups` of ranks."""

    local: Tensor
    n: int
    groups: tuple[ProcessGroup, ...]


def part_of(tensor: Tensor | Part, parts: int = 1, here: Tensor | None = None) -> Part:
    """What is here of a tensor; or of one of its equal `parts`, of which `here` is what this rank holds."""
    if isinstance(tensor, Part):
        return tensor
    if here is None:
        tensor = summed(tensor)
    n = tensor.numel() * (1 + tensor.is_complex()) // parts
    return Part(local(tensor) if here is None else here, n, sharing_groups(tensor))


def sum_over_ranks(rows: Tensor, groups: Sequence[tuple[ProcessGroup, ...]]) -> Tensor:
    """The sums of each row over its own groups of ranks; one all-reduce for each group that occurs.

    Args:
        rows: what this rank has, of shape (n, k).
        groups: for each row, the groups over which it is summed, one after the other.

    Every rank of a group must call this with the same rows of that group, in the same order.
    """
    # On a mesh of two dims a row is whole only if all ranks sum over the same dim first.
    order = TopologicalSorter[Any]({group: () for of_row in groups for group in of_row})
    for first, then in (pair for of_row in groups for pair in pairwise(of_row)):
        order.add(then, first)
    for group in order.static_order():
        places = [i for i, of_row in enumerate(groups) if group in of_row]
        device = _device(group, rows.device)
        summed = rows[places].to(device)
        torch.distributed.all_reduce(summed, group=group)
        rows[places] = summed.to(rows.device)
    return rows


def gather_over_ranks(values: Sequence[float], group: ProcessGroup) -> list[list[float]]:
    """The values of each rank of the group, as many on each, by one all-gather."""
    device = _device(group, torch.device("cpu"))
    own = torch.tensor(values, dtype=torch.float64, device=device)
    everyones = torch.empty(group.size() * len(own), dtype=torch.float64, device=device)
    torch.distributed.all_gather_into_tensor(everyones, own, group)
    rows: list[list[float]] = everyones.view(group.size(), len(own)).tolist()
    return rows


def told_by_ranks(told: Any, group: ProcessGroup) -> list[Any]:
    """What each rank of the group tells, in the order of the ranks; on each."""
    everyones: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(everyones, told, group)
    return everyones


@contextmanager
def raised_together(group: ProcessGroup | None) -> Iterator[None]:
    """If any rank raises, raise on all, so that none waits for ever."""
    error: Exception | None = None
    try:
        yield
    except (TypeError, ValueError) as raised:
        error = raised
    if group is not None:
        messages = told_by_ranks(None if error is None else str(error), group)
        for rank, message in enumerate(messages):
            if message is not None and error is None:
                raise ValueError(f"{message} (on rank {rank} of process_group)")
    if error is not None:
        raise error


def _device(group: ProcessGroup, wanted: torch.device) -> torch.device:
    """`wanted` if the group's backend can send from there (nccl cannot from the CPU), else its own."""
    types = [device.type for device in group._device_types]
    return wanted if wanted.type in types else torch.device(types[0])


def check_group(group: Any) -> None:
    """Raise if `group` is not a process group of which this rank is a member."""
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        if group == -100:  # what torch.distributed.new_group returns to the others
            raise ValueError(
                "process_group: this rank is not a member of it; allowed: a group of all ranks that hold "
                "parameters of the model, this one among them"
            )
        raise TypeError(
            f"process_group: given {group!r}; allowed: None or a torch.distributed.ProcessGroup, as "
            "dist.group.WORLD or mesh.get_group() give"
        )


def check_covers(group: ProcessGroup, param: Tensor, name: str) -> None:
    """Raise if the parameter lies on ranks that are not in the group."""
    if not is_spread(param):
        return
    members = set(torch.distributed.get_process_group_ranks(group))
    missing = sorted(set(param.device_mesh.mesh.flatten().tolist()) - members)
    if missing:
        raise ValueError(
            f"process_group: has the ranks {sorted(members)}, but parameter {name} lies on {missing} too; "
            "allowed: a group of all ranks that hold parameters of the model"
        )
