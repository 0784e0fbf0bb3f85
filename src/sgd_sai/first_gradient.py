"""The first gradient: until every block has its scale, each step measures those that lack one.

A block *latches* at its first finite, non-zero gradient: its raw G_snr is written to its state and never
changes again, unless the user asks for it. The step at which the first blocks latch also fixes the
normalisers of the whole model: the largest G_snr, and the divisor of "rms". Every block keeps them beside its
G_snr.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from sgd_sai import advice, gsnr
from sgd_sai.blocks import Block, start_momentum
from sgd_sai.cuda_graph import capturing
from sgd_sai.distributed.collectives import gather_over_ranks
from sgd_sai.distributed.layout import Part, part_of
from sgd_sai.given_scales import given_gsnr
from sgd_sai.gsnr import LARGEST, UNLATCHED, Moments, has_data
from sgd_sai.messages import given_name, name_of
from sgd_sai.options import Group, is_given, measures
from sgd_sai.quantized import Momentum, Momentum8, stored_in
from sgd_sai.state import (
    UNKNOWN,
    create_gsnr,
    float_of,
    forget_momentum,
    gsnr_keys,
    gsnr_of_group,
    has_scales,
    momentum_values,
    normalizers_of,
    told_normalizers,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from sgd_sai.optimizer import SGDSaI

_Member = TypeVar("_Member")


def latch(
    optimizer: SGDSaI, gathered: Sequence[tuple[Group, Sequence[Block]]], beside: Sequence[Part]
) -> None:
    """Give a scale to every unlatched block whose gradient allows it; `Block.rests` tells who stays.

    Args:
        optimizer: the one that steps; its groups are told the normalisers.
        gathered: the blocks that have a gradient in this step, group by group.
        beside: what is measured without a block; see `meeting`.

    With a process group this is collective while the normalisers are unknown: every rank must call it, with
    blocks or without. The same holds for the ranks that share DTensors while all these are without a scale.

    Raises:
        RuntimeError: a CUDA graph is being captured, in which the host cannot wait for a measurement; or
            gradients have no data that could be measured.
        ValueError: a scale rule gives no positive, finite number; or ranks that share DTensors have gradients
            for others. No state has changed.
    """
    unlatched = [
        (group, members)
        for group, blocks in gathered
        for members in _measured_together([block for block in blocks if block.gsnr == UNLATCHED], group)
    ]
    if not unlatched and not beside and (optimizer.process_group is None or knows_normalizers(optimizer)):
        return
    if capturing():
        raise RuntimeError(
            f"SGDSaI: {len(unlatched)} block(s) without a scale in a CUDA graph capture, which cannot wait "
            "for their gradients; step until all are latched, then capture"
        )
    with told_to_others(optimizer):
        moments, begun = _measure(unlatched, beside)
        # Every scale is known before the first is written: a rule that raises leaves the state as it was.
        raws = [
            _raw_gsnr(optimizer, group, members[0].index, of_block)
            for (group, members), of_block in zip(unlatched, moments, strict=True)
        ]
    divisors, first = _normalizers(optimizer, raws, moments)
    for (group, members), of_block, raw, goes_on in zip(unlatched, moments, raws, begun, strict=True):
        for member, begins in zip(members, goes_on, strict=True):
            if raw == UNLATCHED:
                member.rests = not of_block.finite  # a gradient of zeros still decays the block
            else:
                _freeze(member, raw, divisors, group, begun=begins)
    together = advice.Together(
        [group for group, _ in unlatched],
        raws,
        moments,
        lambda i: [member.index for member in unlatched[i][1]],
    )
    advice.of_latched(optimizer, together, divisors["gsnr_max"], first=first)


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
    divisors, first = _normalizers(optimizer, raws, moments)
    states = [
        [create_gsnr(optimizer.state, group["params"][i], group, plain=optimizer._plain) for i in places]
        for group, places in unlatched
    ]
    latched = [state for of, raw in zip(states, raws, strict=True) if raw != UNLATCHED for state in of]
    for state, begun in zip(latched, gsnr.hold_something(list(map(momentum_values, latched))), strict=True):
        if not begun:
            forget_momentum(state)
    for of, raw in zip(states, raws, strict=True):
        for state in of if raw != UNLATCHED else ():
            state.update(divisors, gsnr=raw)
    together = advice.Together([group for group, _ in unlatched], raws, moments, lambda i: unlatched[i][1])
    advice.of_latched(optimizer, together, divisors["gsnr_max"], first=first)


def measure_again(optimizer: SGDSaI) -> None:
    """Let every block lose its scale, and the model its normalisers; momenta stay."""
    for group in optimizer.param_groups:
        group.update(UNKNOWN)
        for state in filter(None, map(optimizer.state.get, group["params"])):
            for key in gsnr_keys(group["split"]):
                if float_of(state, key) > 0.0:  # a block without elements needs no scale
                    state[key] = UNLATCHED
            state.update(UNKNOWN)
    optimizer._has_scales = False
    optimizer._unmet = None


def normalizers(optimizer: SGDSaI) -> dict[str, float]:
    """gsnr_max and gsnr_rms, −1 until the first blocks have latched, on any rank.

    Raises:
        ValueError: with a process group, the scales of this rank were thrown away.
    """
    if not optimizer.state and optimizer.process_group is None:
        return UNKNOWN.copy()  # as for each of a thousand groups that are added to a new optimizer
    told = told_normalizers(optimizer.param_groups)
    own = normalizers_of(optimizer.param_groups, optimizer.state, told=told)
    if own["gsnr_max"] != UNLATCHED or optimizer.process_group is None:
        return own
    if optimizer._has_scales and told["gsnr_max"] != UNLATCHED:
        # Alone, this rank cannot know whether the others have lost theirs too.
        raise ValueError(
            "state: it has lost all scales of this rank, but the ranks of process_group share the "
            "normalisers; allowed: optimizer.measure_again() on every rank"
        )
    return told


def knows_normalizers(optimizer: SGDSaI) -> bool:
    """True once the first blocks have latched, on any rank."""
    if has_scales(optimizer.param_groups, optimizer.state):
        return True
    return normalizers(optimizer)["gsnr_max"] != UNLATCHED


@contextmanager
def told_to_others(optimizer: SGDSaI, beside: Sequence[Part] = ()) -> Iterator[None]:
    """If this rank raises before it has told its normalisers, the others of its process group raise too.

    Args:
        optimizer: the one that steps.
        beside: where ranks wait for the sums of this one, which are yet to be measured; see `meeting`. They
            must be told first: until they have these sums, they do not listen to the process group.
    """
    try:
        yield
    except RuntimeError:
        raise  # as of a collective that has failed; no other one can be relied on
    except Exception as error:
        with suppress(ValueError):  # what all of them raise; this rank has an error of its own
            gsnr.measure([[part._replace(what=f"an error, {error}")] for part in beside])
        if optimizer.process_group is not None and not knows_normalizers(optimizer):
            gather_over_ranks([math.nan] * 3, optimizer.process_group)
        raise


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


def _part(group: Group, member: Block) -> Part:
    """The gradient of a block, as it is on this rank."""
    name = given_name(group, member.index)
    name = f"{member.key} of {name}" if name and group["split"] > 1 else name
    return part_of(member.whole_grad, group["split"], member.grad, name)


def _measure(
    unlatched: Sequence[tuple[Group, Sequence[Block]]], beside: Sequence[Part]
) -> tuple[list[Moments], list[list[bool]]]:
    """The moments of blocks, and for each of their members if its momentum goes on.

    Such a momentum was given by the user, or is kept by `measure_again`. One of zeros waits for its first
    gradient. Where gradients have no data, they are taken for others than zero.

    Args:
        unlatched: groups, and the blocks of each that are measured together.
        beside: what is measured without a block; see `meeting`.
    """
    parts = [[_part(group, member) for member in members] for group, members in unlatched]
    if all(has_data(member.grad) for _, members in unlatched for member in members):
        momenta = [[None if m.fresh else _values(m.momentum) for m in members] for _, members in unlatched]
        moments, begun = gsnr.measure_with_momenta(
            [*parts, *([part] for part in beside)], [*momenta, *([None] for _ in beside)]
        )
        return moments[: len(parts)], begun[: len(parts)]
    for group, members in unlatched:
        if measures(group):
            raise RuntimeError(
                f"SGDSaI: the gradient of {name_of(group, members[0].index)} has no data (meta device or "
                "FakeTensorMode), so no g-SNR can be measured; allowed: scale='sqrt_d' or scales by name, "
                "and normalize not 'rms'; `sgd-sai memory` tells what a step needs"
            )
    moments = [Moments(sum(part.n for part in of_block), 0.0, 1.0, 0) for of_block in parts]
    return moments, [[False] * len(of_block) for of_block in parts]


def _raw_gsnr(optimizer: SGDSaI, group: Group, index: int, moments: Moments) -> float:
    """The raw G_snr of a block by the group's rule, −1 if its gradient allows none.

    Args:
        index: the place in the group of the block's parameter, or of its first one.
    """
    if not moments.measurable:
        return UNLATCHED
    raw = _by_rule(optimizer, group, index, moments)
    form = group["normalize"]
    if gsnr.normalizer_key(form) is None and raw > gsnr.divisor(form, {}) * LARGEST:
        raise ValueError(
            f"normalize: {form!r} multiplies lr by {raw:.3g}"
            + (f" / {form:.3g}" if form else "")
            + ", beyond float32; allowed: True, 'rms', or a number that fits the scale"
        )
    return raw


def _by_rule(optimizer: SGDSaI, group: Group, index: int, moments: Moments) -> float:
    if is_given(group["scale"]):
        return given_gsnr(group, index)
    if group["blocks"] == "group" and (measured := gsnr_of_group(group, optimizer.state)) != UNLATCHED:
        return measured  # a member whose gradient came late joins the block as it was measured
    rule = group["scale"]
    if rule == "gsnr":
        return float(gsnr.g_snr(moments, eps=group["eps"], unbiased=group["unbiased"]))  # eps may be NumPy's
    if rule == "sqrt_d":
        return gsnr.sqrt_d(moments)
    raw = float(rule(moments))
    if not 0.0 < raw < math.inf:
        raise ValueError(f"scale: it gave {raw} for {moments}; allowed: a positive, finite number")
    return raw


def _values(momentum: Momentum) -> Tensor | None:
    """A tensor that is zeros if the momentum is; None if there is none."""
    return momentum.absmax if isinstance(momentum, Momentum8) else stored_in(momentum)[0]


def _freeze(block: Block, raw: float, divisors: Mapping[str, float], group: Group, *, begun: bool) -> None:
    """Freeze G_snr; m₁ is this step's gradient, or with `measure_first` the next one.

    The momentum first: a block that is frozen has one, also if there was no memory to go on.
    """
    if group["measure_first"]:
        block.rests = True
        if not begun:
            forget_momentum(block.state)
    elif not begun:
        start_momentum(block.momentum, block.grad, group["maximize"])
    block.state.update(divisors)
    block.state[block.key] = raw


def _normalizers(
    optimizer: SGDSaI, raws: Sequence[float], moments: Sequence[Moments]
) -> tuple[dict[str, float], bool]:
    """The divisors of the scales: those of the first latch; and True if this may be it."""
    known = normalizers(optimizer)
    first = known["gsnr_max"] == UNLATCHED
    if first:
        latched = [pair for pair in zip(raws, moments, strict=True) if pair[0] != UNLATCHED]
        known = _first_normalizers(optimizer.param_groups, latched, optimizer.process_group)
        tell(optimizer.param_groups, known)
    optimizer._has_scales |= any(raw != UNLATCHED for raw in raws)
    return known, first


def tell(groups: Sequence[Group], known: Mapping[str, float]) -> None:
    """Copy the normalisers into groups; see `told_normalizers`."""
    for group in groups:
        group.update(known)


def _first_normalizers(
    groups: list[Group], latched: list[tuple[float, Moments]], process_group: ProcessGroup | None
) -> dict[str, float]:
    """gsnr_max and gsnr_rms of the blocks that latch in this step, on all ranks of the process group."""
    raws, moments = [raw for raw, _ in latched], [of_block for _, of_block in latched]
    given = [float(max(group["scale"].values())) for group in groups if is_given(group["scale"])]
    of_ranks = [[max(raws + given) if raws else UNLATCHED, *gsnr.rms_parts(raws, moments)]]
    if process_group is not None:
        of_ranks = gather_over_ranks(of_ranks[0], process_group)
    largest, norms, nonzero = zip(*of_ranks, strict=True)
    if failed := [rank for rank, of_rank in enumerate(largest) if math.isnan(of_rank)]:
        raise ValueError(
            f"process_group: its rank {failed[0]} has raised an error in this step, and says which; no rank "
            "has moved"
        )
    if max(largest) == UNLATCHED:
        return UNKNOWN.copy()
    # Of gradients without data it is not known.
    of_rms = math.hypot(*norms) / math.sqrt(sum(nonzero)) if sum(nonzero) else UNLATCHED
    if any(group["normalize"] == "rms" for group in groups) and max(largest) > of_rms * LARGEST:
        raise ValueError(
            f"normalize: 'rms' would multiply lr by {max(largest):.3g} / {of_rms:.3g}, beyond float32, as "
            "the first gradients are so small; allowed: a loss that is multiplied by more, or another form"
        )
    return {"gsnr_max": max(largest), "gsnr_rms": of_rms}
