"""The first gradient: until every block has its scale, each step measures those that lack one.

A block *latches* at its first finite, non-zero gradient: its raw G_snr is written to its state and never
changes again. The step at which the first blocks latch also fixes the normalisers of the whole model: the
largest G_snr, and the divisor of "rms".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from sgd_sai import gsnr
from sgd_sai.blocks import Block, start_momentum
from sgd_sai.cuda_graph import capturing
from sgd_sai.distributed.collectives import gather_over_ranks
from sgd_sai.distributed.layout import part_of
from sgd_sai.given_scales import given_gsnr
from sgd_sai.gsnr import UNLATCHED, Moments
from sgd_sai.messages import listed, name_of, warn
from sgd_sai.options import Group, is_given
from sgd_sai.several_optimizers import warn_of_parts
from sgd_sai.state import State, gsnr_of_group, is_unlatched

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from sgd_sai.optimizer import SGDSaI

_Member = TypeVar("_Member")


def latch(optimizer: SGDSaI, gathered: Sequence[tuple[Group, Sequence[Block]]]) -> None:
    """Give a scale to every unlatched block whose gradient allows it; `Block.rests` tells who stays.

    Args:
        optimizer: the one that steps; its groups get the normalisers.
        gathered: the blocks that have a gradient in this step, group by group.

    With a process group this is collective while the normalisers are unknown: every rank must call it, with
    blocks or without.

    Raises:
        RuntimeError: a CUDA graph is being captured, in which the host cannot wait for a measurement.
        ValueError: a scale rule gives no positive, finite number; no state has changed.
    """
    unlatched = [
        (group, members)
        for group, blocks in gathered
        for members in _measured_together([block for block in blocks if block.gsnr == UNLATCHED], group)
    ]
    if not unlatched and (optimizer.process_group is None or knows_normalizers(optimizer)):
        return
    if capturing():
        raise RuntimeError(
            f"SGDSaI: {len(unlatched)} block(s) without a scale in a CUDA graph capture, which cannot wait "
            "for their gradients; step until all are latched, then capture"
        )
    moments = gsnr.measure(
        [
            [part_of(member.whole_grad, group["split"], member.grad) for member in members]
            for group, members in unlatched
        ]
    )
    # Every scale is known before the first is written: a rule that raises leaves the state as it was.
    raws = [
        _raw_gsnr(optimizer, group, members[0].index, of_block)
        for (group, members), of_block in zip(unlatched, moments, strict=True)
    ]
    # So are the normalisers: a step that is cut off below must not leave some of another gradient.
    first = _record_normalizers(optimizer, raws, moments)
    for (group, members), of_block, raw in zip(unlatched, moments, raws, strict=True):
        for member in members:
            if raw == UNLATCHED:
                member.rests = not of_block.finite  # a gradient of zeros still decays the block
            else:
                _freeze(member, raw, group)
    if first:
        _warn(optimizer)


def latch_measured(optimizer: SGDSaI, measured: Mapping[Tensor, Moments]) -> None:
    """Latch parameters of groups with `measure_first` by the moments of gradients that are gone.

    What `latch` does in a first step on those gradients; nothing moves.
    """
    unlatched: list[tuple[Group, list[int]]] = []
    for group in optimizer.param_groups:
        places = [index for index, param in enumerate(group["params"]) if param in measured]
        unlatched += [(group, together) for together in _measured_together(places, group)]
    moments = [
        gsnr.combined([measured[group["params"][index]] for index in places]) for group, places in unlatched
    ]
    raws = [
        _raw_gsnr(optimizer, group, places[0], of_block)
        for (group, places), of_block in zip(unlatched, moments, strict=True)
    ]
    first = _record_normalizers(optimizer, raws, moments)
    for (group, places), raw in zip(unlatched, raws, strict=True):
        for index in places:
            state = optimizer.state[group["params"][index]]
            state.setdefault("gsnr", UNLATCHED)
            if raw != UNLATCHED:
                _freeze_before_momentum(state, "gsnr", raw)
    if first:
        _warn(optimizer)


def knows_normalizers(optimizer: SGDSaI) -> bool:
    """True once the first blocks have latched, on any rank."""
    return any(group["gsnr_max"] != UNLATCHED for group in optimizer.param_groups)


def can_step_alone(optimizer: SGDSaI, group: Group) -> bool:
    """True if a parameter of the group needs no gradient but its own for its scale.

    The normalisers are known then, and so is the scale of a group that is one block.
    """
    if group["blocks"] == "group" and gsnr_of_group(group, optimizer.state) == UNLATCHED:
        return False
    return knows_normalizers(optimizer)


def _measured_together(members: list[_Member], group: Group) -> list[list[_Member]]:
    """The members of a group as blocks: each its own, or all of them one."""
    if group["blocks"] == "group":
        return [members] if members else []
    return [[member] for member in members]


def _raw_gsnr(optimizer: SGDSaI, group: Group, index: int, moments: Moments) -> float:
    """The raw G_snr of a block by the group's rule, −1 if its gradient allows none.

    Args:
        index: the place in the group of the block's parameter, or of its first one.
    """
    if not moments.measurable:
        return UNLATCHED
    if is_given(group["scale"]):
        return given_gsnr(group, index)
    if group["blocks"] == "group" and (measured := gsnr_of_group(group, optimizer.state)) != UNLATCHED:
        return measured  # a member whose gradient came late joins the block as it was measured
    rule = group["scale"]
    if rule == "gsnr":
        return gsnr.g_snr(moments, eps=group["eps"], unbiased=group["unbiased"])
    if rule == "sqrt_d":
        return gsnr.sqrt_d(moments)
    raw = float(rule(moments))
    if not 0.0 < raw < math.inf:
        raise ValueError(f"scale: it gave {raw} for {moments}; allowed: a positive, finite number")
    return raw


def _freeze(block: Block, raw: float, group: Group) -> None:
    """Freeze G_snr; m₁ is this step's gradient, or with `measure_first` the next one.

    The momentum first: a block that is frozen has one, also if there was no memory to go on.
    """
    if group["measure_first"]:
        block.rests = True
        _freeze_before_momentum(block.state, block.key, raw)
    else:
        start_momentum(block.momentum, block.grad, group["maximize"])
        block.state[block.key] = raw


def _freeze_before_momentum(state: State, key: str, raw: float) -> None:
    """Freeze G_snr of a block whose m₁ is its next gradient: a buffer that is absent has not begun."""
    state.pop("momentum_buffer", None)
    state[key] = raw


def _record_normalizers(optimizer: SGDSaI, raws: Sequence[float], moments: Sequence[Moments]) -> bool:
    """Record the divisors of the scales at the first latch; True if this is it."""
    if knows_normalizers(optimizer):
        return False
    latched = [pair for pair in zip(raws, moments, strict=True) if pair[0] != UNLATCHED]
    first = _normalizers(optimizer.param_groups, latched, optimizer.process_group)
    for group in optimizer.param_groups:
        group.update(first)
    return knows_normalizers(optimizer)


def _normalizers(
    groups: list[Group], latched: list[tuple[float, Moments]], process_group: ProcessGroup | None
) -> dict[str, float]:
    """gsnr_max and gsnr_rms of the blocks that latch in this step, on all ranks of the process group."""
    raws, moments = [raw for raw, _ in latched], [of_block for _, of_block in latched]
    given = [max(group["scale"].values()) for group in groups if is_given(group["scale"])]
    of_ranks = [[max(raws + given) if raws else UNLATCHED, *gsnr.rms_sums(raws, moments)]]
    if process_group is not None:
        of_ranks = gather_over_ranks(of_ranks[0], process_group)
    largest, total_sq, nonzero = zip(*of_ranks, strict=True)
    if max(largest) == UNLATCHED:
        return {"gsnr_max": UNLATCHED, "gsnr_rms": UNLATCHED}
    return {"gsnr_max": max(largest), "gsnr_rms": math.sqrt(sum(total_sq) / sum(nonzero))}


def _warn(optimizer: SGDSaI) -> None:
    """Warn of what the first latch shows: blocks that are still without a scale, and parts of a model."""
    _warn_of_unlatched(optimizer)
    warn_of_parts(optimizer)


def _warn_of_unlatched(optimizer: SGDSaI) -> None:
    names = [
        name_of(group, index)
        for group in optimizer.param_groups
        for index, param in enumerate(group["params"])
        if param.requires_grad and is_unlatched(param, optimizer.state.get(param, {}), group)
    ]
    if names:
        warn(
            f"SGDSaI: {len(names)} parameter(s) met no finite, non-zero gradient in the first step; each "
            f"is scaled when it does: {listed(names)}. LoRA's A and zero-initialised layers do this."
        )
