"""The state of one parameter: its raw G_snr, and the buffers that its options ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sgd_sai.gsnr import UNLATCHED
from sgd_sai.messages import name_of
from sgd_sai.options import Group
from sgd_sai.quantized import create_momentum8, fits_8_bits

#: The g-SNR of a block without elements: it neither waits for a scale nor needs a normaliser.
EMPTY = 0.0

#: What a group knows once the first blocks have latched, −1 before: see `SGDSaI`.
NORMALIZERS = ("gsnr_max", "gsnr_rms")

#: A parameter's entry in `optimizer.state`.
State = dict[str, Any]


def gsnr_keys(split: int) -> tuple[str, ...]:
    """The keys under which a parameter's state holds the raw G_snr of its blocks."""
    return ("gsnr",) if split == 1 else tuple(f"gsnr_{part}" for part in range(split))


def create_state(state: State, param: Tensor, group: Group) -> None:
    """Fill the empty state of a parameter whose blocks are without a scale."""
    # An empty parameter will never be measured, and must not be waited for.
    state.update(dict.fromkeys(gsnr_keys(group["split"]), UNLATCHED if param.numel() else EMPTY))
    create_buffers(state, param, group)


def create_buffers(state: State, param: Tensor, group: Group) -> None:
    """Add the buffers that a state lacks: the options may have changed, or the momentum not begun."""
    if group["momentum"] != 0 and "momentum_buffer" not in state:
        create_momentum(state, param, group)
    if needs_compensation(param, group) and "compensation" not in state:
        state["compensation"] = torch.zeros_like(param)


def create_momentum(state: State, param: Tensor, group: Group) -> None:
    """Add a momentum of zeros in the group's `state_dtype`."""
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
    return UNLATCHED in [state.get(key, UNLATCHED) for key in gsnr_keys(group["split"])] and param.numel() > 0


def gsnr_of_group(group: Group, states: Mapping[Tensor, State]) -> float:
    """The raw G_snr of a group that is one block, −1 until it is measured."""
    for param in filter(Tensor.numel, group["params"]):
        measured: float = states.get(param, {}).get("gsnr", UNLATCHED)
        if measured != UNLATCHED:
            return measured
    return UNLATCHED


def known_normalizers(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The normalisers that any of the groups knows; one that was added since the first latch may not."""
    return {key: max((group[key] for group in groups), default=UNLATCHED) for key in NORMALIZERS}


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
