"""The layout of a tensor over ranks: the part of a `DTensor` that this rank holds, and views of it.

A `DTensor` (FSDP2, HSDP, tensor parallelism) is one tensor on a mesh of ranks. A step works on the local
part alone.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
    """The part of a tensor that this rank holds, without a copy; a plain tensor as it is."""
    if not is_spread(tensor):
        return tensor
    part: Any = tensor._local_tensor  # to_local() makes a view of a parameter at each call
    here: Tensor = part.wait() if hasattr(part, "wait") else part  # a communication may be under way
    return here


def laid_out_as(tensor: Tensor, param: Tensor) -> Tensor:
    """`tensor`, of the parameter's shape, spread as the parameter is: a partial gradient is summed."""
    if not is_spread(param):
        return gathered(tensor)
    if not is_spread(tensor):
        from torch.distributed.tensor import DTensor, Replicate

        # Each rank has the whole and takes its own part: nothing is sent. `distribute_tensor` would send in
        # torch 2.6, which lacks its src_data_rank.
        device, mesh = local(param).device, param.device_mesh
        whole = DTensor.from_local(tensor.to(device), mesh, [Replicate()] * mesh.ndim, run_check=False)
        return whole.redistribute(placements=param.placements)
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
    """The groups of ranks over which a tensor is cut: those of the mesh dims that do not replicate it.

    A rank outside the mesh has a DTensor too, of which it holds nothing; it shares it with none.
    """
    if not is_spread(tensor) or tensor.device_mesh.get_coordinate() is None:
        return ()
    mesh = tensor.device_mesh
    groups = (mesh.get_group(i) for i, placed in enumerate(tensor.placements) if not placed.is_replicate())
    return tuple(group for group in groups if group.size() > 1)


def cuts(tensor: Tensor) -> dict[int, int]:
    """Of each dim along which a tensor is cut: into how many parts."""
    found: dict[int, int] = {}
    if is_spread(tensor):
        for i, placed in enumerate(tensor.placements):
            if not (placed.is_replicate() or placed.is_partial()):
                dim = int(placed.dim)  # type: ignore[attr-defined]  # Shard or _StridedShard
                found[dim] = found.get(dim, 1) * tensor.device_mesh.size(i)
    return found


def spread_as(like: DTensor, part: Tensor, shape: Sequence[int], *, whole: bool = False) -> DTensor:
    """The DTensor of a shape of which this rank has `part`, cut as `like` is; or `whole`, on every rank."""
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate()] * like.device_mesh.ndim if whole else like.placements
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    return DTensor.from_local(
        part, like.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=tuple(strides)
    )


def contiguous(tensor: Tensor) -> Tensor:
    """`tensor`, its part on this rank contiguous."""
    here = local(tensor)
    if here.is_contiguous():
        return tensor
    return spread_as(tensor, here.contiguous(), tensor.shape) if is_spread(tensor) else here.contiguous()


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank; all must ask."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def _local_box(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of the part of this rank, and the place of its first element in the whole."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(shape), tuple(offset)


def _local_rows(tensor: Tensor, parts: int) -> list[int]:
    """How many rows of each of `parts` equal parts along dim 0 this rank holds; they follow each other."""
    rows = tensor.size(0) // parts
    if not is_spread(tensor):
        return [rows] * parts
    shape, offset = _local_box(tensor)
    begin, end = offset[0], offset[0] + shape[0]
    return [max(0, min(end, (part + 1) * rows) - max(begin, part * rows)) for part in range(parts)]


def first_elements(tensor: Tensor, parts: int) -> list[int]:
    """The place in the whole tensor, row after row, of the first element of each part of this rank."""
    if parts == 1 and not is_spread(tensor):
        return [0]
    begin = 0
    if is_spread(tensor):
        strides = [math.prod(tensor.shape[dim + 1 :]) for dim in range(tensor.dim())]
        begin = sum(map(operator.mul, _local_box(tensor)[1], strides))
    a_row = math.prod(tensor.shape[1:])
    rows = _local_rows(tensor, parts) if parts > 1 else [0]
    return [begin + a_row * sum(rows[:part]) for part in range(parts)]


def local_parts(tensor: Tensor, parts: int) -> list[Tensor]:
    """Cut a tensor into `parts` equal parts along dim 0; return views of those rows that this rank holds."""
    here = local(tensor)
    if parts == 1:
        return [here]
    views, begin = [], 0
    for rows in _local_rows(tensor, parts):  # one by one: autograd lets no output of `split` be written to
        views.append(here[begin : begin + rows])
        begin += rows
    return views


class Part(NamedTuple):
    """The part of a gradient on this rank.

    Attributes:
        local: its elements.
        n: how many reals the whole has.
        groups: of ranks, over which the whole is cut.
        what: in words, what is cut; all ranks of the groups must say the same. Empty where nothing is.
    """

    local: Tensor
    n: int
    groups: tuple[ProcessGroup, ...]
    what: str = ""

    def over(self, unit: float) -> Part:
        """The part divided by a number, in float64."""
        return self._replace(local=self.local.to(torch.promote_types(self.local.dtype, torch.float64)) / unit)


def part_of(
    tensor: Tensor | Part, parts: int = 1, here: Tensor | None = None, name: str | None = None
) -> Part:
    """The part of a tensor on this rank; or that of one of its `parts` equal parts, which is `here`."""
    if isinstance(tensor, Part):
        return tensor
    if here is None:
        tensor = summed(tensor)
    n = tensor.numel() * (1 + tensor.is_complex()) // parts
    groups = sharing_groups(tensor)
    what = _described(tensor, name) if groups else ""
    return Part(local(tensor) if here is None else here, n, groups, what)


def _described(tensor: Tensor, name: str | None) -> str:
    """What a tensor that is cut is to all ranks that share it: its name, if known, its shape and layout."""
    assert is_spread(tensor)
    cut = ", ".join(map(repr, tensor.placements))
    mesh = "×".join(map(str, tensor.device_mesh.shape))
    return f"{name or 'a tensor without a name'} of shape {tuple(tensor.shape)}, {cut} on a mesh of {mesh}"
