"""What a user is told once: of blocks without a scale, of scales that say little, of too large a decay.

Nothing here is an error, and nothing changes a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy

from sgd_sai import gsnr
from sgd_sai.gsnr import Moments
from sgd_sai.messages import listed, name_of, warn
from sgd_sai.options import Group
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


class Latched(NamedTuple):
    """A block that has just got its scale: the places of its parameters in the group, G_snr, and moments."""

    group: Group
    places: Sequence[int]
    gsnr: float
    moments: Moments


def of_latched(optimizer: SGDSaI, latched: Sequence[Latched], gsnr_max: float, *, first: bool) -> None:
    """Warn of what the blocks that latch in this step show.

    Args:
        optimizer: the one that steps.
        latched: those blocks.
        gsnr_max: the maximum by which they are divided.
        first: True if they are the first ones.
    """
    if not latched:
        return
    _of_small_deviations(optimizer, latched)
    if first:
        _of_unlatched(optimizer)
        warn_of_parts(optimizer)
    else:
        _of_capped(optimizer, latched, gsnr_max)


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
        warn(
            f"SGDSaI: {len(waiting)} parameter(s), {share}, met no finite, non-zero gradient in the first "
            f"step; each is scaled when it does, by the maximum of the others: "
            f"{listed(name for name, _ in waiting)}. LoRA's A and zero-initialised layers do this."
        )


def _of_capped(optimizer: SGDSaI, latched: Sequence[Latched], gsnr_max: float) -> None:
    capped = [of for of in latched if of.group["normalize"] is True and of.gsnr > _CAPPED * gsnr_max]
    if not capped or not _once(optimizer, "capped"):
        return
    share = _share(optimizer, sum(of.moments.n for of in capped))
    most = max(of.gsnr for of in capped) / gsnr_max
    names = _names(capped)
    warn(
        f"SGDSaI: {len(names)} parameter(s), {share}, met their first gradient after the maximum was fixed. "
        f"Their scales would be up to {most:.3g} and are 1: {listed(names)}. That need not cost anything. If "
        "they are to follow their G_snr, use normalize='rms' or scale=measure_scales(model, loss), or call "
        "optimizer.measure_again(), and tune lr again (docs/late.md)"
    )


def _of_small_deviations(optimizer: SGDSaI, latched: Sequence[Latched]) -> None:
    deviations = [gsnr.deviation(of.moments, unbiased=of.group["unbiased"]) for of in latched]
    small, lost = [], 0.0
    for of, σ in zip(latched, deviations, strict=True):
        eps = of.group["eps"]
        if of.group["scale"] == "gsnr" and eps > _SMALL_DEVIATION * σ:
            small.append(of)
            lost += of.moments.n * eps / (σ + eps)
    if lost < _LOST * sum(of.moments.n for of in latched) or not small or not _once(optimizer, "eps"):
        return
    share = _share(optimizer, sum(of.moments.n for of in small))
    names = _names(small)
    warn(
        f"SGDSaI: eps={small[0].group['eps']} is more than 1 % of the standard deviation of the gradients of "
        f"{len(names)} parameter(s), {share}: {listed(names)}. It makes their scales smaller; "
        "eps=0 does not"
    )


def _once(optimizer: SGDSaI, kind: str) -> bool:
    """True the first time that an optimizer asks for a kind of advice."""
    given: set[str] = optimizer.__dict__.setdefault("_advised", set())
    if kind in given:
        return False
    given.add(kind)
    return True


def _names(latched: Sequence[Latched]) -> list[str]:
    return [name_of(of.group, place) for of in latched for place in of.places]


def _share(optimizer: SGDSaI, n: int) -> str:
    """How many of the elements that the optimizer trains these are."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    whole = sum(_elements(param) for param in params if param.requires_grad)
    percent = 100 * n / max(whole, n, 1)
    return f"{percent:.{0 if percent >= 1 else 2}f} % of the elements"


def _elements(param: Tensor) -> int:
    return 0 if is_lazy(param) else param.numel() * (1 + param.is_complex())
