"""The optimizers of torch.distributed that stand around another one, which they tell nothing of the ranks.

They are found on the stack, once: when the inner optimizer is made, or at its first gradient.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def group_of_zero() -> ProcessGroup | None:
    """The ranks of the ZeroRedundancyOptimizer that is making an optimizer for its part of the parameters."""
    zero = _caller("torch.distributed.optim.zero_redundancy_optimizer", "_init_local_optimizer")
    return None if zero is None else zero.process_group


def trains_apart() -> bool:
    """True in a step of a PostLocalSGDOptimizer that averages parameters: gradients are each rank's own."""
    wrapper = _caller("torch.distributed.optim.post_localSGD_optimizer", "step")
    averager = getattr(wrapper, "averager", None)
    if averager is None or averager.process_group.size() == 1:
        return False
    return bool(averager.step >= getattr(averager, "warmup_steps", 0))


def _caller(module: str, function: str) -> Any:
    """The object whose method is being executed, None if it is not."""
    frame = sys._getframe(1) if module in sys.modules else None
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__") == module:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None
