"""Scales that the user gives by name, `SGDSaI(…, scale=measure_scales(model, loss))`.

They are for wrappers that flatten parameters (DeepSpeed, FSDP1): in a flat piece no block can be measured.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sgd_sai.distributed.collectives import told_by_ranks
from sgd_sai.messages import listed
from sgd_sai.options import Group, is_given

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def given_gsnr(group: Group, index: int) -> float:
    """The raw G_snr that the user gives for a parameter, which has a name: see `check_whole`."""
    return float(group["scale"][group["param_names"][index]])


def check_names(groups: list[Group], process_group: ProcessGroup | None = None) -> None:
    """Raise, on every rank, for scales by name that no parameter has, or that are others on other ranks."""
    names = {name for group in groups for name in group.get("param_names", ())}
    given = {
        name: raw for group in groups if is_given(group["scale"]) for name, raw in group["scale"].items()
    }
    if process_group is not None:
        of_ranks = told_by_ranks((names, given), process_group)
        names = names.union(*(of_rank for of_rank, _ in of_ranks))
        for rank, (_, of_rank) in enumerate(of_ranks):
            if of_rank != of_ranks[0][1]:
                raise ValueError(
                    f"scale: rank {rank} of process_group is given other scales than rank 0; allowed: the "
                    "same on all, measured on one and broadcast"
                )
    unknown = given.keys() - names
    if unknown:
        raise ValueError(
            f"scale: names {len(unknown)} that are no parameters: {listed(unknown)}; allowed: "
            "the names of all parameters, or with process_group those of the whole model"
        )


def check_whole(param: Tensor, group: Group, plain: bool) -> None:
    """Reject parameters that DeepSpeed or FSDP1 has flattened: per-tensor statistics cannot be recovered.

    Args:
        param: a parameter that gets its state.
        group: that of the parameter.
        plain: True if the user gave tensors that are no nn.Parameter; DeepSpeed's pieces are none either.
    """
    deepspeed = "deepspeed" in sys.modules and not isinstance(param, nn.Parameter) and not plain
    fsdp1 = getattr(param, "_fsdp_flattened", False)
    given = is_given(group["scale"])
    if given and len(group["param_names"]) != len(group["params"]):
        raise ValueError(
            f"scale: given by name, for {len(group['param_names'])} names and {len(group['params'])} "
            "tensor(s) in a group: some were appended to it, or a wrapper has made flat ones; allowed: "
            "add_param_group for new ones, and, before wrapping, one group for each parameter, "
            "[{'params': [named]} for named in model.named_parameters()]"
        )
    if (deepspeed or fsdp1) and not given:
        wrapper = "DeepSpeed" if deepspeed else "FullyShardedDataParallel"
        raise ValueError(
            f"params: {wrapper} has cut them into flat pieces, in which no block can be measured; allowed: "
            "scale=measure_scales(model, loss), called before the model is wrapped (docs/distributed.md)"
        )
