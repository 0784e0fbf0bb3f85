"""What is kept beside a parameter of 16 bits with `rounding="kahan"`: its dtype, and how it is saved.

`rounding` says what it means.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sgd_sai.distributed.layout import is_spread, local, spread_as
from sgd_sai.rounding import exactly


def compensation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the compensation of a parameter of 16 bits."""
    return torch.int16 if dtype == torch.bfloat16 else dtype


@torch.no_grad()
def compensation_of(θ: Tensor, held: Tensor) -> Tensor:
    """A compensation as θ's dtype has it, from one of another dtype.

    The model was cast after some steps, or the state is older: the compensation of a bfloat16 was once what
    rounding lost, in bfloat16. What is more than half a unit in θ's last place is none, and becomes 0.
    """
    if θ.dtype != torch.bfloat16:
        if held.dtype == torch.int16:
            narrow = θ.to(torch.bfloat16)
            held = exactly(narrow, held) - narrow.float()
        return held.to(θ.dtype)
    wide = θ.float()
    low = (wide + held).view(torch.int32) - wide.view(torch.int32)
    return torch.where(low.abs() <= 0x8000, low.clamp_max(0x7FFF), 0).to(torch.int16)


def in_bytes(low: Tensor) -> Tensor:
    """Lower halves as they are saved: int8 of shape (*, 2), a view.

    Process groups send no int16, and no cast to a floating dtype changes an int8.
    """
    pairs = local(low).unsqueeze(-1).view(torch.int8)
    return spread_as(low, pairs, (*low.shape, 2)) if is_spread(low) else pairs


def from_bytes(pairs: Tensor) -> Tensor:
    """Lower halves, from what `in_bytes` has made of them, of whatever dtype that is now."""
    here = local(pairs)
    low = torch.empty_like(here[..., 0], dtype=torch.int16)
    low.unsqueeze(-1).view(torch.int8).copy_(here)
    return spread_as(pairs, low, pairs.shape[:-1]) if is_spread(pairs) else low


def is_in_bytes(compensation: Tensor, param: Tensor) -> bool:
    """True for lower halves as they are saved, also where torch.optim has cast them as it casts all state."""
    return compensation.dtype == torch.int8 or (not is_lazy(param) and compensation.dim() > param.dim())
