"""The state of `SGDSaI` as it is saved and loaded.

torch.optim casts floating state to the parameter's dtype when it loads, which would round a float32
momentum to bfloat16. Momentum is therefore packed while torch places the state, and unpacked after.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sgd_sai.distributed.layout import laid_out_as
from sgd_sai.gsnr import UNLATCHED
from sgd_sai.messages import listed, name_of, warn
from sgd_sai.names import in_order_of
from sgd_sai.options import RULES, STATE_DTYPES, Group, check_options, check_param, is_given
from sgd_sai.quantized import block_by_index, create_momentum8
from sgd_sai.state import (
    EMPTY,
    NORMALIZERS,
    UNKNOWN,
    create_momentum,
    gsnr_keys,
    lacks_momentum,
    normalizers_of,
    told_normalizers,
)

#: In a saved state alone: whether the momentum has begun, or m₁ will be the next gradient. It is there with
#: `measure_first`, and where momentum was 0 until now.
BEGUN = "momentum_begun"


def portable(state_dict: dict[str, Any], groups: list[Group]) -> dict[str, Any]:
    """`state_dict` of these groups in a form that any checkpoint format takes, with the same keys always.

    Scale rules and dtypes become their names, NumPy's numbers Python's, and a momentum that has not begun
    zeros that say so.
    """
    for saved, group in zip(state_dict["param_groups"], groups, strict=True):
        for option, value in saved.items():
            if isinstance(value, Real) and not isinstance(value, int):
                saved[option] = float(value)
            elif isinstance(value, torch.dtype):
                saved[option] = str(value)
        saved["rounding_step"] = int(saved.get("rounding_step", 0))
        if callable(saved["scale"]):
            rule = saved["scale"] if hasattr(saved["scale"], "__qualname__") else type(saved["scale"])
            saved["scale"] = f"{rule.__module__}.{rule.__qualname__}"
        elif is_given(saved["scale"]):
            saved["scale"] = "given by name"
        for number, param in zip(saved["params"], group["params"], strict=True):
            if number in state_dict["state"]:
                entries = {**UNKNOWN, **state_dict["state"][number]}
                state_dict["state"][number] = _with_momentum(entries, param, group)
    return state_dict


def _with_momentum(entries: dict[str, Any], param: Tensor, group: Group) -> dict[str, Any]:
    """A parameter's state with its momentum, also where the optimizer has none yet; see `BEGUN`."""
    begun = not lacks_momentum(entries, group)
    if group["momentum"] == 0 or (begun and not group["measure_first"]):
        return entries
    completed = {**entries, BEGUN: begun}
    if not begun:
        create_momentum(completed, param, group)
    return completed


@dataclass
class _Packed:
    """A tensor that torch.optim's cast passes by."""

    tensor: Tensor


@dataclass
class _Kept:
    """A scale rule, which may hold a model: torch.optim copies the options of groups."""

    rule: Any

    def __deepcopy__(self, memo: object) -> _Kept:
        return self


def unpack(state: MutableMapping[Tensor, dict[str, Any]], groups: list[Group]) -> None:
    """Put packed tensors back, on their parameter's device or devices and in their own dtype, and rules.

    Then every scale has its normalisers beside it, and the groups are told them.
    """
    for group in groups:
        for param in group["params"]:
            for key, value in state.get(param, {}).items():
                if isinstance(value, _Packed):
                    state[param][key] = laid_out_as(value.tensor, param).to(param.device)
            block_by_index(state.get(param, {}))
        if isinstance(group["scale"], _Kept):
            group["scale"] = group["scale"].rule
    _settle_normalizers(state, groups)


def _settle_normalizers(state: Mapping[Tensor, dict[str, Any]], groups: list[Group]) -> None:
    """States of before kept the normalisers in the groups alone; release 1.0.3 has none."""
    known = normalizers_of(groups, state)
    if known["gsnr_max"] == UNLATCHED:
        known = told_normalizers(groups)
    scaled = [
        (param, raws)
        for group in groups
        for param in group["params"]
        if (raws := _scales(state.get(param, {}), group))
    ]
    if known["gsnr_max"] == UNLATCHED:
        known["gsnr_max"] = max((max(raws) for _, raws in scaled), default=UNLATCHED)
    for param, _ in scaled:
        if state[param].get("gsnr_max", UNLATCHED) == UNLATCHED:
            state[param].update(known)
    for group in groups:
        group.update(known)


def _is_scaled(entries: object) -> bool:
    return isinstance(entries, Mapping) and any(
        _GSNR.fullmatch(str(key)) and raw > 0.0 for key, raw in entries.items()
    )


def _scales(entries: Mapping[str, Any], group: Group) -> list[float]:
    """The raw G_snr of those blocks of a parameter that have one."""
    return [raw for key in gsnr_keys(group["split"]) if (raw := _number(entries.get(key))) > 0.0]


def _number(raw: float | None) -> float:
    return UNLATCHED if raw is None else raw


def fitted(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `state_dict` that fits `optimizer`, momentum packed; ValueError says what does not fit.

    A pre-hook of `load_state_dict`: it runs before anything of the optimizer changes.
    """
    _check_containers(state_dict)
    groups = optimizer.param_groups
    saved = in_order_of(groups, state_dict["param_groups"])
    sizes, own = [len(group["params"]) for group in saved], [len(group["params"]) for group in groups]
    if sizes != own:
        raise ValueError(f"state_dict: has groups of {sizes} parameters; the optimizer has groups of {own}")
    fitting = [_fitted_group(old, group) for old, group in zip(saved, groups, strict=True)]
    for completed in fitting:
        try:
            check_options(completed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state_dict: {error}") from None
        completed["scale"] = _Kept(completed["scale"])
    state = dict(state_dict["state"])
    numbers = {number for group in fitting for number in group["params"]}
    # Where parameters are numbered, a name is an entry of another tool for the whole model.
    unknown = {key for key in state.keys() - numbers if any(isinstance(n, type(key)) for n in numbers)}
    if unknown:
        raise ValueError(f"state_dict: has state of {sorted(map(str, unknown))}, which are in no group")
    if not all(isinstance(entries, Mapping) for key, entries in state.items() if key in numbers):
        raise ValueError("state_dict: its 'state' is not a dict of dicts, one for each parameter")
    if any(state.values()) and not any(_has_gsnr(entries) for entries in state.values()):
        raise ValueError(f"state_dict: holds no 'gsnr'; it is another optimizer's. {_WHAT_THEN}")
    fresh = []
    for old, group in zip(fitting, groups, strict=True):
        for index, (number, param) in enumerate(zip(old["params"], group["params"], strict=True)):
            if number in state:
                try:
                    check_param(old, param, "it")
                    if param.requires_grad and not set(state[number]) & set(gsnr_keys(old["split"])):
                        fresh.append(name_of(group, index))
                    state[number] = _fitted_state(state[number], param, old)
                except ValueError as error:
                    raise ValueError(f"state_dict: {name_of(group, index)}: {error}") from None
            elif param.requires_grad:
                fresh.append(name_of(group, index))
    if state and fresh:  # not an error: it may have been frozen until now
        warn(f"state_dict: lacks {len(fresh)} of the trained parameters, which begin anew: {listed(fresh)}")
    if getattr(optimizer, "process_group", None) is None and not any(map(_is_scaled, state.values())):
        for completed in fitting:  # normalisers without a scale would be those of another run
            completed.update(UNKNOWN)
    return {**state_dict, "state": state, "param_groups": fitting}


def _check_containers(state_dict: Mapping[str, Any]) -> None:
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


#: By the names under which they are saved.
_STATE_DTYPES = {str(dtype): dtype for dtype in STATE_DTYPES}
#: Options that groups of torch.optim's optimizers have, one at least each, and release 1.0.3's have not.
_FOREIGN = {"foreach", "maximize", "differentiable", "capturable", "nesterov", "betas", "alpha", "dampening"}


_WHAT_THEN = (
    "SGDSaI cannot go on from it. Allowed: load the weights of the model alone, and begin with a new SGDSaI, "
    "whose lr transfer_lr finds from that of AdamW"
)


def _fitted_group(saved: Mapping[str, Any], group: Group) -> Group:
    """The saved options, completed from the optimizer's own where they are older than an option."""
    lacks = {"lr", "momentum", "weight_decay", "eps"} - set(saved)
    if lacks or ("normalize" not in saved and _FOREIGN & set(saved)):
        why = f"lack {sorted(lacks)}" if lacks else f"have {sorted(_FOREIGN & set(saved))}"
        raise ValueError(f"state_dict: is another optimizer's, since its groups {why}; {_WHAT_THEN}")
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


#: The names of G_snr in a parameter's state.
_GSNR = re.compile(r"gsnr(_\d+)?")
#: The tensors that a parameter's state may have.
_BUFFERS = ("momentum_buffer", "momentum_absmax", "compensation")


def _has_gsnr(entries: object) -> bool:
    return isinstance(entries, Mapping) and any(_GSNR.fullmatch(str(name)) for name in entries)


def _fitted_state(saved: Mapping[str, Any], param: Tensor, group: Group) -> dict[str, Any]:
    keys = gsnr_keys(group["split"])
    others = {name for name in saved if _GSNR.fullmatch(str(name))}.difference(keys)
    if others:
        raise ValueError(f"holds {sorted(others)} where split={group['split']} keeps {list(keys)}")
    fitting: dict[str, Any] = {}
    for key in filter(saved.__contains__, keys):
        fitting[key] = _latched_or_not(key, saved[key]) if param.numel() else EMPTY
    if any(raw > 0.0 for raw in fitting.values()):
        fitting.update({key: _latched_or_not(key, saved[key]) for key in NORMALIZERS if key in saved})
    tensors = {name: saved[name] for name in _BUFFERS if saved.get(name) is not None}
    if "momentum_buffer" not in tensors:  # reset by another tool
        tensors.pop("momentum_absmax", None)
    ours = {*keys, *NORMALIZERS, *_BUFFERS, BEGUN}
    fitting.update({name: value for name, value in saved.items() if name not in ours})  # of other tools
    in_8_bits = getattr(tensors.get("momentum_buffer"), "dtype", None) == torch.int8
    if in_8_bits != ("momentum_absmax" in tensors):
        raise ValueError(
            "lacks 'momentum_absmax', without which a momentum in 8 bits means nothing"
            if in_8_bits
            else "holds 'momentum_absmax', but no momentum in 8 bits"
        )
    like: dict[str, Any] = {"momentum_buffer": param, "compensation": param}
    if in_8_bits:
        create_momentum8(like, param, group["split"])
    for name, value in tensors.items():
        _check_like(name, value, like[name], param)
        fitting[name] = _Packed(value)
    if not saved.get(BEGUN, True):
        fitting.pop("momentum_buffer", None)
        fitting.pop("momentum_absmax", None)
    return fitting


def _check_like(name: str, value: object, like: Tensor, param: Tensor) -> None:
    """Raise unless `value` is a tensor of the shape, and of the kind of numbers, of `like`."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        has = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {has}, the parameter {tuple(param.shape)}")
    kinds = [(dtype.is_complex, dtype.is_floating_point) for dtype in (value.dtype, like.dtype)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{name} is of {value.dtype}, the parameter of {param.dtype}")


def _latched_or_not(key: str, raw: object) -> float:
    """A saved G_snr as a float. Release 1.0.3 saves 0 or NaN for blocks that it could not measure."""
    if not isinstance(raw, Real) and not (isinstance(raw, Tensor) and raw.numel() == 1):
        has = f"a tensor of shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else repr(raw)
        raise ValueError(f"{key} is {has}; allowed: a number")
    value = float(raw)
    return value if 0.0 < value < math.inf else UNLATCHED
