"""What a step moves: the parameters of a group that have a gradient, as columns, or block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sgd_sai.blocks import Block, Columns, blocks_of, divisors_of, plain_columns, with_fresh_momenta
from sgd_sai.distributed.layout import laid_out_as
from sgd_sai.gsnr import UNLATCHED, check_dense
from sgd_sai.messages import name_of
from sgd_sai.options import Group, check_param
from sgd_sai.state import create_buffers, create_gsnr, fill_normalizers, has_scale, lacks_momentum

if TYPE_CHECKING:
    from sgd_sai.optimizer import SGDSaI


def gather(optimizer: SGDSaI, group: Group, index: int | None) -> Columns | list[Block]:
    """The parameters of a group that have a gradient, or the one at an index: columns if all are plain."""
    params = group["params"] if index is None else [group["params"][index]]
    if columns := plain_columns(group, params, index or 0, optimizer.state):
        return columns
    return [
        block
        for place, param in enumerate(params, index or 0)
        if param.grad is not None
        for block in _blocks(optimizer, group, place)
    ]


def _blocks(optimizer: SGDSaI, group: Group, index: int) -> list[Block]:
    """The blocks of a parameter that has a gradient; its state is created where it is missing."""
    param = group["params"][index]
    if param.grad.layout != torch.strided:
        check_dense([(name_of(group, index), param.grad)])
    if group["split"] > 1:  # the parameter may have been resized
        check_param(group, param, name_of(group, index))
    state = create_gsnr(optimizer.state, param, group, plain=optimizer._plain)
    if divisors_of([state], group["normalize"]) == [UNLATCHED] and has_scale(state, group):
        fill_normalizers(state, optimizer.normalizers)
    begins = lacks_momentum(state, group)
    create_buffers(state, param, group)
    blocks = list(blocks_of(index, param, laid_out_as(param.grad, param), state, group))
    return with_fresh_momenta(blocks, group) if begins else blocks
