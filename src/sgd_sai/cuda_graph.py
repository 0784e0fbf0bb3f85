"""The capture of a step in a CUDA graph, and the options that it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from sgd_sai.options import Group


def capturing() -> bool:
    """True while a CUDA graph is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def check_capture(groups: list[Group]) -> None:
    """Raise in a CUDA graph capture unless the options of the groups allow it."""
    if not capturing():
        return
    for group in groups:
        if not group["capturable"]:
            raise RuntimeError("capturable: given False in a CUDA graph capture; allowed: True")
        if not isinstance(group["lr"], Tensor):
            raise RuntimeError(
                f"lr: given {group['lr']!r} in a CUDA graph capture, which would keep that value for ever; "
                "allowed: a 0-dim tensor on the GPU"
            )
