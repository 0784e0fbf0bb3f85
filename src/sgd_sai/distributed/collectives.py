"""Communication between ranks: sums of the parts of a gradient, the largest G_snr, errors.

Ranks talk only while blocks are without a scale; later steps send nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from graphlib import TopologicalSorter
from hashlib import blake2b
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgd_sai.distributed.layout import Part, is_spread

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: The rows of one all-reduce. Its size is the same whatever a rank sends: where sizes differ, backends hang
#: or mix the numbers. Rows beyond it follow in a second one, when the ranks are known to agree.
CAPACITY = 2048
#: Of the digest of what a rank sends. Each is 0 or 1, so that the sum of equal ones is 0 or the number of
#: ranks, and that of others is neither, on every rank and in any dtype. The first is always 1, and counts the
#: ranks: in a dry run, with torch's "fake" backend, a group of any size has this one alone.
BITS = 48
# What a rank adds to each other bit if another group has disagreed: no sum of these and of bits looks right.
_TOLD = 0.5


def sum_over_ranks(rows: Tensor, parts: Sequence[Part]) -> Tensor:
    """The sums of each row over the groups of ranks of its part; one all-reduce for each group that occurs.

    Args:
        rows: what this rank has, of shape (n, k).
        parts: for each row, what it is of, and the groups over which it is summed, one after the other.

    Every rank of a group must call this with the same rows of that group, in the same order.

    Raises:
        ValueError: the ranks of a group have other rows, or another order; on each of these ranks.
    """
    agreements, told = [], torch.zeros((), dtype=torch.bool, device=rows.device)
    for group in _in_order(parts):
        places = [i for i, part in enumerate(parts) if group in part.groups]
        whats = [parts[i].what for i in places]
        device = _device(group, rows.device)
        bits = _digest(whats).to(device, rows.dtype)
        bits[1:] += _TOLD * told.to(device)
        first, others = places[:CAPACITY], places[CAPACITY:]
        sent = torch.zeros(BITS + CAPACITY * rows.size(1), dtype=rows.dtype, device=device)
        begin, end = BITS, BITS + len(first) * rows.size(1)
        sent[:begin], sent[begin:end] = bits, rows[first].to(device).flatten()
        torch.distributed.all_reduce(sent, group=group)
        told = ((sent[:begin] != 0) & (sent[:begin] != sent[0])).any().to(rows.device)
        rows[first] = sent[begin:end].view(len(first), -1).to(rows.device)
        if others and not told:
            summed = rows[others].to(device)
            torch.distributed.all_reduce(summed, group=group)
            rows[others] = summed.to(rows.device)
        agreements.append((group, told, whats))
    _check(agreements)
    return rows


def _in_order(parts: Sequence[Part]) -> list[ProcessGroup]:
    """The groups of all parts, in an order that is the same on all ranks, whatever that of the parts is.

    On a mesh of two dims a row is whole only if all ranks sum over the same dim first.
    """
    # Annotated, as Python 3.10 cannot subscript this class.
    order: TopologicalSorter[Any] = TopologicalSorter({group: () for part in parts for group in part.groups})
    for before, after in (pair for part in parts for pair in pairwise(part.groups)):
        order.add(after, before)
    order.prepare()
    groups: list[ProcessGroup] = []
    while ready := order.get_ready():
        groups += sorted(
            ready, key=lambda group: (torch.distributed.get_process_group_ranks(group), group.group_name)
        )
        order.done(*ready)
    return groups


def _digest(whats: Sequence[str]) -> Tensor:
    """A 1, and the bits of a hash of what a rank has, of shape (BITS,)."""
    number = int.from_bytes(blake2b("\n".join(whats).encode(), digest_size=BITS // 8).digest(), "big") | 1
    return torch.tensor([number >> place & 1 for place in range(BITS)])


def _check(agreements: Sequence[tuple[ProcessGroup, Tensor, list[str]]]) -> None:
    """Raise where the ranks of a group have not said the same; all of them know, and tell what they have."""
    message = None
    disagreed = [told.item() for _, told, _ in agreements]  # the host waits once: the others are there, too
    for (group, _, whats), disagrees in zip(agreements, disagreed, strict=True):
        if disagrees:
            everyones = told_by_ranks((message, whats), group)
            earlier = [of_rank for of_rank, _ in everyones if of_rank is not None]
            ranks = torch.distributed.get_process_group_ranks(group)
            message = (earlier or [_disagreement(ranks, [whats for _, whats in everyones])])[0]
    if message is not None:
        raise ValueError(message)


def _disagreement(ranks: Sequence[int], everyones: Sequence[Sequence[str]]) -> str:
    """The message for ranks that sum other rows: the first at which they differ."""
    rows = enumerate(zip_longest(*everyones, fillvalue="none"), 1)
    number, row = next((number, row) for number, row in rows if len(set(row)) > 1)
    says: dict[str, list[int]] = {}
    for rank, what in zip(ranks, row, strict=True):
        says.setdefault(what, []).append(rank)
    said = "; ".join(f"on {_shortened(on)} {what}" for what, on in says.items())
    return (
        f"params: the ranks that share parameters measure others, or in another order; number {number} is "
        f"{said}. Allowed: lists of the same parameters in the same order on all ranks, which names out of a "
        "set are not, and gradients for the same ones, until each has its scale"
    )


def _shortened(ranks: Sequence[int]) -> str:
    listed = ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
    return f"rank{'s' * (len(ranks) > 1)} {listed}"


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
