"""What is read from a saved state: options and entries, checked before anything of the optimizer changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sgd_sai.compensation import is_in_bytes
from sgd_sai.distributed.layout import is_spread
from sgd_sai.gsnr import UNLATCHED
from sgd_sai.options import RULES, STATE_DTYPES, Group, is_given
from sgd_sai.quantized import (
    absmax_in_shape,
    absmax_shape,
    block_by_index,
    fits_8_bits,
    is_large,
    read_whole,
    real_shape,
)
from sgd_sai.state import (
    BUFFERS,
    EMPTY,
    GSNR,
    NORMALIZERS,
    UNKNOWN,
    forget_momentum,
    gsnr_keys,
    is_empty,
    mark_wide,
    wide_dtype,
)

#: In a saved state alone: whether the momentum has begun, or m₁ will be the next gradient.
BEGUN = "momentum_begun"
_OURS = {*BUFFERS, BEGUN}
#: In a saved group alone: how a momentum in 8 bits is laid out. "rows": as `quantized` says; and beside one
#: that could have 8 bits, but has more, is `WIDE`. "index": nothing is beside it, and scales have one dim.
#: Where this is missing, codes that are not contiguous are older: their blocks follow the order of memory.
ORDER = "momentum_order"
#: What the refusal of another optimizer's checkpoint advises.
WHAT_THEN = (
    "SGDSaI cannot go on from it. Allowed: load the weights of the model alone, and begin with a new SGDSaI, "
    "whose lr transfer_lr finds from that of AdamW"
)
#: Dtypes by the names under which they are saved.
_STATE_DTYPES = {str(dtype): dtype for dtype in STATE_DTYPES}
#: Options that groups of torch.optim's optimizers have, one at least each, and release 1.0.3's have not.
_FOREIGN = {"foreach", "maximize", "differentiable", "capturable", "nesterov", "betas", "alpha", "dampening"}


@dataclass
class Packed:
    """A tensor that torch.optim's cast passes by."""

    tensor: Tensor


def check_containers(state_dict: Mapping[str, Any]) -> None:
    """Raise for what is not even built like the state of an optimizer."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"state_dict: given {type(state_dict).__name__}; allowed: a dict")
    if not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(f"state_dict: has {sorted(state_dict)}; it must have 'state' and 'param_groups'")
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping):
        raise ValueError("state_dict: its 'state' is not a dict of dicts, one for each parameter")
    if not isinstance(groups, list | tuple) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple) for group in groups
    ):
        raise ValueError("state_dict: its 'param_groups' is not a list of dicts with 'params'")


def fitted_group(saved: Mapping[str, Any], group: Group) -> Group:
    """The saved options, completed from the optimizer's own where they are older than an option."""
    lacks = {"lr", "momentum", "weight_decay", "eps"} - set(saved)
    if lacks or ("normalize" not in saved and _FOREIGN & set(saved)):
        why = f"lack {sorted(lacks)}" if lacks else f"have {sorted(_FOREIGN & set(saved))}"
        raise ValueError(f"state_dict: is another optimizer's, since its groups {why}; {WHAT_THEN}")
    if "normalize" not in saved:  # release 1.0.3, whose lr multiplies the raw, unbiased G_snr
        saved = {"normalize": False, "unbiased": True, "measure_first": False, **saved}
        saved = {"scale": "gsnr", "blocks": "tensor", "split": 1, "maximize": False, **saved}
    # older states are as they are
    saved = {"state_dtype": None, "rounding": "nearest", **saved}
    completed = {**group, **UNKNOWN, **saved}
    if "param_names" in group:  # as they are here, with or without what wrappers put into them
        completed["param_names"] = group["param_names"]
    completed["state_dtype"] = _STATE_DTYPES.get(completed["state_dtype"], completed["state_dtype"])
    if completed["scale"] not in RULES:  # a callable or a dict, which was saved as its name
        if not (callable(group["scale"]) or is_given(group["scale"])):
            raise ValueError(
                f"state_dict: its scale rule is {completed['scale']}; give that rule to the optimizer"
            )
        completed["scale"] = group["scale"]
    return completed


def has_gsnr(entries: Mapping[str, Any]) -> bool:
    """True for a parameter's state as SGDSaI saves it."""
    return any(GSNR.fullmatch(str(name)) for name in entries)


def fitted_state(
    saved: Mapping[str, Any], param: Tensor, group: Group, *, order: str | None, wide: bool, tells: bool
) -> dict[str, Any]:
    """A parameter's state as it is loaded: ours checked and packed, the entries of others as they are.

    On DTensors every rank must ask.

    Args:
        saved: the entries.
        param, group: the parameter, and its group as it is loaded.
        order: see `ORDER`.
        wide: whether its scales are `WIDE`.
        tells: whether they would be, if its momentum could have 8 bits, but has more.

    Raises:
        ValueError: they do not fit the parameter.
    """
    keys = gsnr_keys(group["split"])
    if others := {name for name in saved if GSNR.fullmatch(str(name))}.difference(keys):
        raise ValueError(f"holds {sorted(others)} where split={group['split']} keeps {list(keys)}")
    fitting: dict[str, Any] = {name: value for name, value in saved.items() if name not in _OURS}
    for key in (*keys, *NORMALIZERS):
        fitting.pop(key, None)
        if saved.get(key) is not None:
            fitting[key] = EMPTY if key in keys and is_empty(param) else _latched_or_not(key, saved[key])
    tensors = {name: saved[name] for name in BUFFERS if saved.get(name) is not None}
    if "momentum_buffer" not in tensors or not saved.get(BEGUN, True):  # the next gradient begins it
        forget_momentum(tensors)
    _fit_8_bits(tensors, param, group, order=order, wide=wide, tells=tells)
    packed: dict[str, Any] = {name: Packed(value) for name, value in tensors.items()}
    if "momentum_buffer" in tensors and "momentum_absmax" not in tensors and not is_lazy(param):
        mark_wide(packed, param, group)
    return {**fitting, **packed}


def _fit_8_bits(
    tensors: dict[str, Any], param: Tensor, group: Group, *, order: str | None, wide: bool, tells: bool
) -> None:
    """Check the tensors of a state, and bring a momentum into the bits that it has here."""
    told, lazy, split = "momentum_absmax" in tensors, is_lazy(param), group["split"]
    has_codes = getattr(tensors.get("momentum_buffer"), "dtype", None) == torch.int8
    if told and wide:
        if has_codes:
            raise ValueError(
                "momentum_buffer had more than 8 bits where it was saved, and torch.distributed.checkpoint "
                "has cast it to int8; allowed: the file that dcp_to_torch_save makes (docs/distributed.md)"
            )
        del tensors["momentum_absmax"]
    # Codes that torch.distributed.checkpoint has cast to the dtype that the momentum has on these ranks.
    cast = told and not wide and not has_codes and is_spread(param) and not fits_8_bits(param)
    if has_codes != (told and not wide) and not cast:
        raise ValueError(
            "lacks 'momentum_absmax', without which a momentum in 8 bits means nothing"
            if has_codes
            else "holds 'momentum_absmax', but no momentum in 8 bits"
        )
    tells = tells and group["state_dtype"] == "8bit" and group["momentum"] != 0
    if tells and "momentum_buffer" in tensors and not told and not lazy and is_large(param):
        raise ValueError(
            "lacks 'momentum_absmax', which tells codes of 8 bits from numbers; allowed: to load a "
            "distributed checkpoint into an optimizer that has state_dtype='8bit', as its own had"
        )
    for name, value in () if lazy else tensors.items():
        if name == "momentum_absmax" and isinstance(value, Tensor):
            value = tensors[name] = absmax_in_shape(value, param, split)
        _check_like(name, value, param, split)
    if order is None:
        block_by_index(tensors, parts=split)
    if cast or (has_codes and is_spread(param) and not fits_8_bits(param)):
        codes, absmax = tensors["momentum_buffer"], tensors.pop("momentum_absmax")
        momentum = read_whole(codes, absmax, split, is_complex=param.is_complex())
        tensors["momentum_buffer"] = momentum.to(wide_dtype(param, group["state_dtype"]))


def _check_like(name: str, value: object, param: Tensor, split: int) -> None:
    """Raise unless `value` is a tensor of the shape and of the kind of numbers that a parameter needs."""
    shape, kind = tuple(param.shape), (param.dtype.is_complex, param.dtype.is_floating_point)
    if name == "momentum_absmax":
        shape, kind = absmax_shape(real_shape(param), split), (False, True)
    elif name == "momentum_buffer" and getattr(value, "dtype", None) == torch.int8:
        shape, kind = real_shape(param), (False, False)
    elif name == "compensation" and isinstance(value, Tensor):
        shape = (*shape, 2) if is_in_bytes(value, param) else shape
        kind = (False, False) if value.dtype in (torch.int8, torch.int16) else kind
    if not isinstance(value, Tensor) or value.shape != shape:
        has = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {has}, the parameter {tuple(param.shape)}")
    if (value.dtype.is_complex, value.dtype.is_floating_point) != kind:
        raise ValueError(f"{name} is of {value.dtype}, the parameter of {param.dtype}")


def _latched_or_not(key: str, raw: object) -> float:
    """A saved G_snr as a float. Release 1.0.3 saves 0 or NaN for blocks that it could not measure."""
    if not isinstance(raw, Real) and not (isinstance(raw, Tensor) and raw.numel() == 1):
        has = f"a tensor of shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else repr(raw)
        raise ValueError(f"{key} is {has}; allowed: a number")
    value = float(raw)
    return value if 0.0 < value < math.inf else UNLATCHED
