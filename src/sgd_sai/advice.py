"""What a user is told once: of blocks without a scale, of scales that say little, of too large a decay.

Nothing here is an error, and nothing changes a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy

from sgd_sai.distributed.wrappers import trains_apart
from sgd_sai.gsnr import UNLATCHED, Moments
from sgd_sai.messages import listed, name_of, warn
from sgd_sai.options import Group, measures
from sgd_sai.several_optimizers import warn_of_parts
from sgd_sai.state import is_unlatched

if TYPE_CHECKING:
    from sgd_sai.optimizer import SGDSaI

# A late block whose G_snr is at most so many times the maximum loses nothing by the cap.
_CAPPED = 1.1
# ε against the standard deviation of a block; and how much smaller it makes the scales, in the mean over the
# elements, before that is worth a word. The biases of keys, whose gradients are rounding errors, lose all.
_SMALL_DEVIATION = 0.01
_LOST = 0.01


class Together(NamedTuple):
    """The blocks that were measured together in a step, as parallel lists; −1 for one without a scale.

    There are thousands, and of most nothing is said: their places in the group are asked for by number.
    """

    groups: Sequence[Group]
    raws: Sequence[float]
    moments: Sequence[Moments]
    places: Callable[[int], Sequence[int]]

    def names(self, numbers: Sequence[int]) -> list[str]:
        """How a message calls the parameters of some blocks."""
        named = [name_of(self.groups[i], place) for i in numbers for place in self.places(i)]
        return list(dict.fromkeys(named))  # a parameter may have several blocks

    def elements(self, numbers: Sequence[int]) -> int:
        """How many elements some blocks have."""
        return sum(self.moments[i].n for i in numbers)


def of_latched(optimizer: SGDSaI, measured: Together, gsnr_max: float, *, first: bool) -> None:
    """Warn of what the blocks that latch in this step show.

    Args:
        optimizer: the one that steps.
        measured: those blocks, and those that were measured in vain.
        gsnr_max: the maximum by which they are divided.
        first: True if they are the first ones.
    """
    latched = [i for i, raw in enumerate(measured.raws) if raw != UNLATCHED]
    if not latched:
        return
    _of_small_deviations(optimizer, measured, latched, first)
    if first:
        _of_unlatched(optimizer)
        _of_gradients_apart(optimizer, measured.groups)
        warn_of_parts(optimizer)
    else:
        _of_capped(optimizer, measured, latched, gsnr_max)


def of_decay(optimizer: SGDSaI, group: Group) -> None:
    """Warn of a decay that turns the weights around: those of AdamW are for a smaller lr."""
    lr, weight_decay = group["lr"], group["weight_decay"]
    if weight_decay == 0 or isinstance(lr, Tensor) or lr * weight_decay < 1 or not _once(optimizer, "decay"):
        return
    warn(
        f"SGDSaI: lr={lr:.4g} and weight_decay={weight_decay:.4g} multiply the weights by "
        f"1 - lr * weight_decay = {1 - lr * weight_decay:.4g} in each step. The weight_decay of AdamW is for "
        "AdamW's lr: multiply it by that, and divide it by this one"
    )


def _of_unlatched(optimizer: SGDSaI) -> None:
    waiting = [
        (name_of(group, index), param)
        for group in optimizer.param_groups
        for index, param in enumerate(group["params"])
        if param.requires_grad and is_unlatched(param, optimizer.state.get(param, {}), group)
    ]
    if waiting and _once(optimizer, "unlatched"):
        share = _share(optimizer, sum(_elements(param) for _, param in waiting))
        capped = any(group["normalize"] is True for group in optimizer.param_groups)
        warn(
            f"SGDSaI: {len(waiting)} parameter(s), {share}, met no finite, non-zero gradient in the first "
            f"step; each is scaled when it does{', by the maximum of the others' * capped}: "
            f"{listed(name for name, _ in waiting)}. LoRA's A and zero-initialised layers do this."
        )


def _of_gradients_apart(optimizer: SGDSaI, groups: Sequence[Group]) -> None:
    if any(map(measures, groups)) and trains_apart() and _once(optimizer, "apart"):
        warn(
            "SGDSaI: the averager of PostLocalSGDOptimizer has no warmup_steps, so each rank has measured a "
            "gradient of its own, and keeps its own scales. Average the gradients of the first step over all "
            "ranks (warmup_steps and start_localSGD_iter of 1 or more), or give all ranks the same "
            "scale=measure_scales(model, loss)"
        )


def _of_capped(optimizer: SGDSaI, of: Together, latched: Sequence[int], gsnr_max: float) -> None:
    capped = [i for i in latched if of.groups[i]["normalize"] is True and of.raws[i] > _CAPPED * gsnr_max]
    if not capped or not _once(optimizer, "capped"):
        return
    share = _share(optimizer, of.elements(capped))
    most = max(of.raws[i] for i in capped) / gsnr_max
    names = of.names(capped)
    warn(
        f"SGDSaI: {len(names)} parameter(s), {share}, met their first gradient after the maximum was fixed. "
        f"Their scales would be up to {most:.3g} and are 1: {listed(names)}. That need not cost anything. If "
        "they are to follow their G_snr, use normalize='rms' or scale=measure_scales(model, loss), or call "
        "optimizer.measure_again(), and tune lr again (docs/late.md)"
    )


def _of_small_deviations(optimizer: SGDSaI, of: Together, latched: Sequence[int], first: bool) -> None:
    small, lost = [], 0.0
    for i in latched:
        if not first and of.groups[i]["blocks"] == "group":
            continue  # it may have joined a block that was measured without it
        eps = of.groups[i]["eps"] if of.groups[i]["scale"] == "gsnr" else 0.0
        share_of_eps = eps * of.raws[i] / of.moments[i].norm  # ε / (σ + ε), as G_snr is ‖g‖ / (σ + ε)
        if share_of_eps > _SMALL_DEVIATION / (1 + _SMALL_DEVIATION):
            small.append(i)
            lost += of.moments[i].n * share_of_eps
    if lost < _LOST * of.elements(latched) or not small or not _once(optimizer, "eps"):
        return
    share, names, eps = _share(optimizer, of.elements(small)), of.names(small), of.groups[small[0]]["eps"]
    warn(
        f"SGDSaI: eps={eps} is more than 1 % of the standard deviation of the gradients of {len(names)} "
        f"parameter(s), {share}: {listed(names)}. It makes their scales smaller; eps=0 does not"
    )


def _once(optimizer: SGDSaI, kind: str) -> bool:
    """True the first time that an optimizer asks for a kind of advice."""
    given: set[str] = optimizer.__dict__.setdefault("_advised", set())
    if kind in given:
        return False
    given.add(kind)
    return True


def _share(optimizer: SGDSaI, n: int) -> str:
    """How many of the elements that the optimizer trains these are."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    whole = sum(_elements(param) for param in params if param.requires_grad)
    percent = 100 * n / max(whole, n, 1)
    return f"{percent:.{0 if percent >= 1 else 2}f} % of the elements"


def _elements(param: Tensor) -> int:
    return 0 if is_lazy(param) else param.numel() * (1 + param.is_complex())
