"""The state of one parameter: its raw G_snr, the normalisers that go with it, and its buffers.

`optimizer.state` is public: other tools put entries of their own beside ours, take ours away, or give a
momentum. So an entry that is absent, or None, is created when it is needed, and the others are left alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sgd_sai.compensation import compensation_dtype, compensation_of
from sgd_sai.distributed.layout import contiguous, local
from sgd_sai.given_scales import check_whole
from sgd_sai.gsnr import UNLATCHED
from sgd_sai.messages import name_of
from sgd_sai.options import Group
from sgd_sai.quantized import WIDE, absmax_in, cast_back, create_momentum8, fits_8_bits, is_large

#: The g-SNR of a block without elements: it neither waits for a scale nor needs a normaliser.
EMPTY = 0.0

#: The tensors that a parameter's state may have.
BUFFERS = ("momentum_buffer", "momentum_absmax", "compensation")

#: The divisors of a scale, kept beside its G_snr: those of the first latch, see `SGDSaI`.
NORMALIZERS = ("gsnr_max", "gsnr_rms")

#: What they are before.
UNKNOWN = dict.fromkeys(NORMALIZERS, UNLATCHED)

#: The names of G_snr in a parameter's state.
GSNR = re.compile(r"gsnr(_\d+)?")

#: A parameter's entry in `optimizer.state`.
State = dict[str, Any]


def gsnr_keys(split: int) -> tuple[str, ...]:
    """The keys under which a parameter's state holds the raw G_snr of its blocks."""
    return ("gsnr",) if split == 1 else tuple(f"gsnr_{part}" for part in range(split))


def float_of(state: Mapping[str, Any], key: str) -> float:
    """A G_snr or a normaliser of a state, or of a group, as a float; −1 where it is absent, or None."""
    value = state.get(key)
    return UNLATCHED if value is None else float(value)


def has_scale(state: Mapping[str, Any], group: Group) -> bool:
    """True if a block of the parameter has a scale."""
    if group["split"] == 1:  # nearly always; this is asked of every parameter
        return float_of(state, "gsnr") > 0.0
    keys = gsnr_keys(group["split"])
    return _has_parts(state, keys) and any(float_of(state, key) > 0.0 for key in keys)


def create_gsnr(states: MutableMapping[Tensor, State], param: Tensor, group: Group, *, plain: bool) -> State:
    """A parameter's state, with a float for the G_snr of each block and for each normaliser.

    Args:
        states: `optimizer.state`.
        param, group: the parameter, not of a lazy module that has seen no input, and its group.
        plain: see `check_whole`.
    """
    keys = gsnr_keys(group["split"])
    # An empty parameter will never be measured, and must not be waited for.
    before = UNLATCHED if param.numel() else EMPTY
    state = states.setdefault(param, {})
    if not state:
        check_whole(param, group, plain)
        state.update(dict.fromkeys(keys, before), **UNKNOWN)
        return state
    if _lacks_gsnr(state, keys):
        check_whole(param, group, plain)
    if not _has_parts(state, keys):
        _forget_parts(state)
    for key in keys:
        state[key] = EMPTY if before == EMPTY else float_of(state, key)
    for key in NORMALIZERS:
        state[key] = float_of(state, key)
    return state


def _lacks_gsnr(state: Mapping[str, Any], keys: Iterable[str]) -> bool:
    return any(state.get(key) is None for key in keys)


def _has_parts(state: Mapping[str, Any], keys: Collection[str]) -> bool:
    """False if the G_snr of a state are those of another `split`."""
    found = {key for key in state if GSNR.fullmatch(str(key))}
    return not found or found == set(keys)


def _forget_parts(state: State) -> None:
    """Remove every G_snr, and a momentum in 8 bits, whose blocks follow the parts."""
    for key in [key for key in state if GSNR.fullmatch(str(key))]:
        del state[key]
    if absmax_in(state) is not None:
        forget_momentum(state)


def fill_normalizers(state: State, known: Mapping[str, float]) -> None:
    """Add the normalisers that somebody has taken away."""
    state.update((key, N) for key, N in known.items() if float_of(state, key) == UNLATCHED)


def create_states(states: MutableMapping[Tensor, State], groups: list[Group], *, plain: bool) -> None:
    """Complete the states of all trained parameters, also of those that have had no gradient."""
    for group in groups:
        for param in group["params"]:
            keys, state = gsnr_keys(group["split"]), states.get(param, {})
            if not _has_parts(state, keys):
                _forget_parts(state)
            if param.requires_grad and not is_lazy(param) and _lacks_gsnr(state, keys):
                create_buffers(create_gsnr(states, param, group, plain=plain), param, group)


def lacks_momentum(state: State, group: Group) -> bool:
    """True if the momentum is to begin, with the next gradient: several tools reset it to None."""
    return group["momentum"] != 0 and state.get("momentum_buffer") is None


def create_buffers(state: State, param: Tensor, group: Group) -> None:
    """Add the buffers that a state lacks: the options may have changed, or the momentum not begun."""
    if lacks_momentum(state, group):
        create_momentum(state, param, group)
    elif state.get("momentum_buffer") is not None:
        cast_back(state)
        in_8_bits = state["momentum_buffer"].dtype == torch.int8
        if in_8_bits and absmax_in(state) is None:
            raise ValueError(
                "state: a momentum_buffer of int8 has no momentum_absmax, without which it means nothing; "
                "allowed: both, or momentum_buffer None, to begin anew"
            )
        if not in_8_bits:  # it may have been replaced by a wider one
            mark_wide(state, param, group)
        else:  # a tool may have laid them out as the parameter
            state.update({key: contiguous(state[key]) for key in ("momentum_buffer", "momentum_absmax")})
    if lacks_compensation(state, param, group):
        held = state.get("compensation")
        state["compensation"] = torch.zeros_like(param, dtype=compensation_dtype(param.dtype))
        if held is not None:
            local(state["compensation"]).copy_(compensation_of(local(param), local(held)))


def create_momentum(state: State, param: Tensor, group: Group) -> None:
    """Add a momentum of zeros in the group's `state_dtype`."""
    if group["state_dtype"] == "8bit" and fits_8_bits(param):
        create_momentum8(state, param, group["split"])
    else:
        state["momentum_buffer"] = torch.zeros_like(param, dtype=wide_dtype(param, group["state_dtype"]))
        mark_wide(state, param, group)


def mark_wide(state: State, param: Tensor, group: Group) -> None:
    """Put `WIDE` beside a momentum of more than 8 bits, if it could have 8, in place of what is there.

    A distributed checkpoint that is flat is loaded by the keys that a state has.
    """
    state.pop("momentum_absmax", None)
    if group["state_dtype"] == "8bit" and is_large(param):
        state["momentum_absmax"] = WIDE


def wide_dtype(param: Tensor, state_dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype of a momentum that has not 8 bits."""
    if state_dtype == "8bit" and is_large(param):  # whose shards end within blocks of 256
        state_dtype = torch.bfloat16
    if not isinstance(state_dtype, torch.dtype):
        return torch.promote_types(param.dtype, torch.float32)
    return torch.promote_types(state_dtype, torch.complex32) if param.is_complex() else state_dtype


def forget_momentum(state: State) -> None:
    """A buffer that is absent begins with the next gradient."""
    state.pop("momentum_buffer", None)
    state.pop("momentum_absmax", None)


def momentum_values(state: Mapping[str, Any]) -> Tensor | None:
    """A tensor that is zeros if the momentum is; None if there is none."""
    absmax = absmax_in(state)
    buffer: Tensor | None = state.get("momentum_buffer")
    return buffer if buffer is None or absmax is None else absmax


def needs_compensation(param: Tensor, group: Group) -> bool:
    """True for a parameter of 16 bits in a group with `rounding="kahan"`."""
    return bool(group["rounding"] == "kahan") and param.dtype.itemsize == 2


def lacks_compensation(state: Mapping[str, Any], param: Tensor, group: Group) -> bool:
    """True if the parameter needs one, and has none, or one of another dtype than it has now."""
    held = getattr(state.get("compensation"), "dtype", None)
    return needs_compensation(param, group) and held != compensation_dtype(param.dtype)


def is_unlatched(param: Tensor, state: State, group: Group) -> bool:
    """True while a block of the parameter is without a scale."""
    raws = [float_of(state, key) for key in gsnr_keys(group["split"])]
    return UNLATCHED in raws and not is_empty(param)


def is_empty(param: Tensor) -> bool:
    """True for a parameter without elements; one of a lazy module does not know yet how many it has."""
    return not is_lazy(param) and param.numel() == 0


def gsnr_of_group(group: Group, states: Mapping[Tensor, State]) -> float:
    """The raw G_snr of a group that is one block, −1 until it is measured."""
    for param in group["params"]:
        measured = float_of(states.get(param, {}), "gsnr")
        if measured not in (UNLATCHED, EMPTY):
            return measured
    return UNLATCHED


def has_scales(groups: Sequence[Group], states: Mapping[Tensor, State]) -> bool:
    """True if any block has a scale."""
    if not states:
        return False
    return any(has_scale(states.get(param, {}), group) for group in groups for param in group["params"])


def normalizers_of(
    groups: Sequence[Group], states: Mapping[Tensor, State], *, told: Mapping[str, float] = UNKNOWN
) -> dict[str, float]:
    """The normalisers of the blocks that have a scale, −1 while none has.

    They lie beside the scales: whoever replaces `optimizer.state` or the groups replaces both or neither. If
    blocks have come from elsewhere with others, those of most blocks count.

    Args:
        groups, states: of an optimizer.
        told: what counts if no scale has normalisers beside it, as before they were kept there. If that is
            not known either, as of release 1.0.3, the maximum is that of the blocks.
    """
    scaled = [
        (group, state)
        for group in groups
        for param in group["params"]
        if (state := states.get(param)) and has_scale(state, group)
    ]
    if not scaled:
        return UNKNOWN.copy()
    largest = _commonest(float_of(state, "gsnr_max") for _, state in scaled)
    if largest != UNLATCHED:
        same = (state for _, state in scaled if float_of(state, "gsnr_max") == largest)
        return {"gsnr_max": largest, "gsnr_rms": _commonest(float_of(state, "gsnr_rms") for state in same)}
    if told["gsnr_max"] != UNLATCHED:
        return dict(told)
    raws = [float_of(state, key) for group, state in scaled for key in gsnr_keys(group["split"])]
    return {**UNKNOWN, "gsnr_max": max(raws)}


def _commonest(numbers: Iterable[float]) -> float:
    """The number that occurs most often, but for −1."""
    counted = Counter(numbers)
    del counted[UNLATCHED]
    return counted.most_common(1)[0][0] if counted else UNLATCHED


def told_normalizers(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the groups say of the normalisers; one that was added since the first latch may not know.

    A copy, for users, for older checkpoints, and for a rank of a process group whose own blocks have no scale
    yet.
    """
    return {key: max((float_of(group, key) for group in groups), default=UNLATCHED) for key in NORMALIZERS}


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
