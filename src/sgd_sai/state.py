"""The state of one parameter: its raw G_snr, the normalisers that go with it, and its buffers.

`optimizer.state` is public: other tools put entries of their own beside ours, take ours away, or give a
momentum. So an entry that is absent, or None, is created when it is needed, and the others are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sgd_sai.given_scales import check_whole
from sgd_sai.gsnr import UNLATCHED
from sgd_sai.messages import name_of
from sgd_sai.options import Group
from sgd_sai.quantized import create_momentum8, fits_8_bits

#: The g-SNR of a block without elements: it neither waits for a scale nor needs a normaliser.
EMPTY = 0.0

#: The divisors of a scale, kept beside its G_snr: those of the first latch, see `SGDSaI`.
NORMALIZERS = ("gsnr_max", "gsnr_rms")

#: What they are before.
UNKNOWN = dict.fromkeys(NORMALIZERS, UNLATCHED)

#: A parameter's entry in `optimizer.state`.
State = dict[str, Any]


def gsnr_keys(split: int) -> tuple[str, ...]:
    """The keys under which a parameter's state holds the raw G_snr of its blocks."""
    return ("gsnr",) if split == 1 else tuple(f"gsnr_{part}" for part in range(split))


def lacks_gsnr(state: State, group: Group) -> bool:
    """True unless each block of a parameter has an entry for its G_snr."""
    return any(state.get(key) is None for key in gsnr_keys(group["split"]))


def create_gsnr(states: MutableMapping[Tensor, State], param: Tensor, group: Group, *, plain: bool) -> State:
    """A parameter's state, with an entry for the G_snr of each block.

    Args:
        states: `optimizer.state`.
        param, group: the parameter, not of a lazy module that has seen no input, and its group.
        plain: see `check_whole`.
    """
    state = states.setdefault(param, {})
    for key in gsnr_keys(group["split"]):
        if state.get(key) is None:
            check_whole(param, group, plain)
            # An empty parameter will never be measured, and must not be waited for.
            state[key] = UNLATCHED if param.numel() else EMPTY
    return state


def create_states(states: MutableMapping[Tensor, State], groups: list[Group], *, plain: bool) -> None:
    """Complete the states of all trained parameters, also of those that have had no gradient."""
    for group in groups:
        for param in group["params"]:
            if param.requires_grad and not is_lazy(param) and lacks_gsnr(states.get(param, {}), group):
                create_buffers(create_gsnr(states, param, group, plain=plain), param, group)


def lacks_momentum(state: State, group: Group) -> bool:
    """True if the momentum is to begin, with the next gradient: several tools reset it to None."""
    return group["momentum"] != 0 and state.get("momentum_buffer") is None


def create_buffers(state: State, param: Tensor, group: Group) -> None:
    """Add the buffers that a state lacks: the options may have changed, or the momentum not begun."""
    if lacks_momentum(state, group):
        create_momentum(state, param, group)
    elif group["momentum"] != 0:
        in_8_bits = state["momentum_buffer"].dtype == torch.int8
        if in_8_bits and state.get("momentum_absmax") is None:
            raise ValueError(
                "state: a momentum_buffer of int8 has no momentum_absmax, without which it means nothing; "
                "allowed: both, or momentum_buffer None, to begin anew"
            )
        if not in_8_bits:  # it was replaced by a wider one
            state.pop("momentum_absmax", None)
    if needs_compensation(param, group) and state.get("compensation") is None:
        state["compensation"] = torch.zeros_like(param)


def create_momentum(state: State, param: Tensor, group: Group) -> None:
    """Add a momentum of zeros in the group's `state_dtype`."""
    state.pop("momentum_absmax", None)  # of a momentum in 8 bits that was there before
    dtype = group["state_dtype"]
    if dtype == "8bit" and fits_8_bits(param):
        create_momentum8(state, param, group["split"])
        return
    wide = torch.promote_types(param.dtype, torch.float32)
    if isinstance(dtype, torch.dtype):
        wide = torch.promote_types(dtype, torch.complex32) if param.is_complex() else dtype
    state["momentum_buffer"] = torch.zeros_like(param, dtype=wide)


def needs_compensation(param: Tensor, group: Group) -> bool:
    """True for a parameter of 16 bits in a group with `rounding="kahan"`."""
    return bool(group["rounding"] == "kahan") and param.dtype.itemsize == 2


def is_unlatched(param: Tensor, state: State, group: Group) -> bool:
    """True while a block of the parameter is without a scale."""
    raws = [state.get(key, UNLATCHED) for key in gsnr_keys(group["split"])]
    return (UNLATCHED in raws or None in raws) and not is_empty(param)


def is_empty(param: Tensor) -> bool:
    """True for a parameter without elements; one of a lazy module does not know yet how many it has."""
    return not is_lazy(param) and param.numel() == 0


def gsnr_of_group(group: Group, states: Mapping[Tensor, State]) -> float:
    """The raw G_snr of a group that is one block, −1 until it is measured."""
    for param in group["params"]:
        measured: float | None = states.get(param, {}).get("gsnr")
        if measured is not None and measured not in (UNLATCHED, EMPTY):
            return measured
    return UNLATCHED


def normalizers_of(groups: Sequence[Group], states: Mapping[Tensor, State]) -> dict[str, float]:
    """The normalisers of the first block that has a scale, −1 while none has.

    They lie beside the scales, and nowhere else: whoever replaces `optimizer.state` or the groups replaces
    both or neither.
    """
    for group in groups:
        for param in group["params"]:
            state = states.get(param)
            if state and state.get("gsnr_max", UNLATCHED) != UNLATCHED:
                return {key: state.get(key, UNLATCHED) for key in NORMALIZERS}
    return UNKNOWN.copy()


def told_normalizers(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the groups say of the normalisers; one that was added since the first latch may not know.

    A copy, for users, for older checkpoints, and for a rank whose own blocks have no scale yet.
    """
    return {
        key: max((group.get(key, UNLATCHED) for group in groups), default=UNLATCHED) for key in NORMALIZERS
    }


def check_resized(group: Group, states: Mapping[Tensor, State]) -> None:
    """Raise for the first parameter of another shape than its gradient or its buffers: it was resized."""
    for index, param in enumerate(group["params"]):
        state = states.get(param, {})
        buffers = {key: state.get(key) for key in ("momentum_buffer", "compensation")}
        for what, tensor in {"its gradient": param.grad, **buffers}.items():
            if tensor is None:
                continue
            in_pairs = param.is_complex() and not tensor.is_complex()  # momentum in 8 bits
            shape = tensor.shape[:-1] if in_pairs else tensor.shape
            if shape != param.shape:
                raise ValueError(
                    f"{name_of(group, index)} has shape {tuple(param.shape)}, {what} {tuple(shape)}; after "
                    "a resize, delete what belongs to the old one: its gradient and optimizer.state[param]"
                )
