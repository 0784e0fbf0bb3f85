"""Several optimizers of one model, as for a step inside backward: each sees a part of the model alone.

`normalize=True` then divides by the largest G_snr of that part, and "rms" by the part's own RMS. With one
parameter in each, every scale is 1, and SGD-SaI is SGD. The optimizers need one divisor: a number.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock, get_ident
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

import torch

from sgd_sai.messages import warn
from sgd_sai.options import Group
from sgd_sai.state import has_scales, is_empty

if TYPE_CHECKING:
    from sgd_sai.optimizer import SGDSaI

#: Every optimizer of this process that is still in use, and the thread that made it.
_LIVE: WeakKeyDictionary[SGDSaI, int] = WeakKeyDictionary()
_LOCK = Lock()
#: Those that had gradients, but no divisor yet, when another one fixed its own.
_BESIDE: WeakSet[SGDSaI] = WeakSet()


def remember(optimizer: SGDSaI) -> None:
    """Let the others know of an optimizer, for as long as it is in use."""
    with _LOCK:
        _LIVE[optimizer] = get_ident()


def warn_of_parts(optimizer: SGDSaI) -> None:
    """Warn at the first latch if the optimizer seems to hold a part of a model whose divisor is its own."""
    form = next((group["normalize"] for group in optimizer.param_groups if _divides_by_its_own(group)), None)
    if form is None:
        return
    if optimizer.process_group is None and _count_blocks(optimizer) == 1:
        why = "it holds one block" + (", whose scale is therefore 1, as in SGD" if form is True else "")
    elif torch._C._current_graph_task_id() != -1:
        why = "it steps inside backward, before other gradients are there"
    elif optimizer in _BESIDE:
        why = "its gradients were there when another SGDSaI took its own first step"
    else:
        with _LOCK:  # another thread trains another model
            others = [other for other, thread in _LIVE.items() if thread == _LIVE.get(optimizer)]
        _BESIDE.update(other for other in others if _waits_beside(optimizer, other))
        return
    of, key = ("largest G_snr", "gsnr_max") if form is True else ("RMS", "gsnr_rms")
    warn(
        f"SGDSaI: normalize={form!r} divides by the {of} of the optimizer's own parameters, and {why}. If it "
        "is one of several optimizers of a model, give the same number to each: "
        f"normalize=sgd_sai.diagnostics.measure_blocks(model).normalizers[{key!r}]"
    )


def _divides_by_its_own(group: Group) -> bool:
    return group["normalize"] is True or group["normalize"] == "rms"


def _count_blocks(optimizer: SGDSaI) -> int:
    """How many blocks there are, also those that have no gradient yet."""
    count = 0
    for group in optimizer.param_groups:
        trained = sum(param.requires_grad and not is_empty(param) for param in group["params"])
        count += min(trained, 1) if group["blocks"] == "group" else trained * group["split"]
    return count


def _waits_beside(optimizer: SGDSaI, other: SGDSaI) -> bool:
    """True if `other` has gradients, but no divisor, and is not a copy of the optimizer for comparison."""
    params = [param for group in other.param_groups for param in group["params"]]
    if other is optimizer or has_scales(other.param_groups, other.state):
        return False
    if not any(map(_divides_by_its_own, other.param_groups)) or all(param.grad is None for param in params):
        return False
    own = Counter(param.shape for group in optimizer.param_groups for param in group["params"])
    return own != Counter(param.shape for param in params)
