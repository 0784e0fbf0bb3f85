"""Communication between ranks: sums of the parts of a gradient, the largest G_snr, errors.

Ranks talk only while blocks are without a scale; later steps send nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgd_sai.distributed.layout import is_spread

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sum_over_ranks(rows: Tensor, groups: Sequence[tuple[ProcessGroup, ...]]) -> Tensor:
    """The sums of each row over its own groups of ranks; one all-reduce for each group that occurs.

    Args:
        rows: what this rank has, of shape (n, k).
        groups: for each row, the groups over which it is summed, one after the other.

    Every rank of a group must call this with the same rows of that group, in the same order.
    """
    # On a mesh of two dims a row is whole only if all ranks sum over the same dim first.
    # Annotated, as Python 3.10 cannot subscript this class.
    order: TopologicalSorter[Any] = TopologicalSorter({group: () for of_row in groups for group in of_row})
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
    """Gather an object from each rank of the group, in the order of the ranks, on every rank."""
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
