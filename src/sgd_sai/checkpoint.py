"""The state of `SGDSaI` as it is saved and loaded.

torch.optim casts floating state to the parameter's dtype when it loads, which would round a float32
momentum to bfloat16. Momentum is therefore packed while torch places the state, and unpacked after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sgd_sai import precision
from sgd_sai.distributed import laid_out_as
from sgd_sai.gsnr import UNLATCHED
from sgd_sai.options import RULES, Group, is_given, name_of


def gsnr_keys(split: int) -> tuple[str, ...]:
    """The keys under which a parameter's state holds the raw G_snr of its blocks."""
    return ("gsnr",) if split == 1 else tuple(f"gsnr_{part}" for part in range(split))


def portable(state_dict: dict[str, Any]) -> dict[str, Any]:
    """`state_dict` with scale rules replaced by their names, so that any checkpoint format takes it."""
    for group in state_dict["param_groups"]:
        if callable(group["scale"]):
            rule = group["scale"] if hasattr(group["scale"], "__qualname__") else type(group["scale"])
            group["scale"] = f"{rule.__module__}.{rule.__qualname__}"
        elif is_given(group["scale"]):
            group["scale"] = "given by name"
    return state_dict


@dataclass
class _Packed:
    """A tensor that torch.optim's cast passes by."""

    tensor: Tensor


def unpack(state: MutableMapping[Tensor, dict[str, Any]]) -> None:
    """Put packed tensors back, on their parameter's device or devices and in their own dtype."""
    for param, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, _Packed):
                entries[key] = laid_out_as(value.tensor, param).to(param.device)


def fitted(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `state_dict` that fits `optimizer`, momentum packed; ValueError says what does not fit.

    A pre-hook of `load_state_dict`: it runs before anything of the optimizer changes.
    """
    if not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(f"state_dict: has {sorted(state_dict)}; it must have 'state' and 'param_groups'")
    saved, groups = state_dict["param_groups"], optimizer.param_groups
    sizes, own = [len(group["params"]) for group in saved], [len(group["params"]) for group in groups]
    if sizes != own:
        raise ValueError(f"state_dict: has groups of {sizes} parameters; the optimizer has groups of {own}")
    saved = [_fitted_group(old, group) for old, group in zip(saved, groups, strict=True)]
    state = dict(state_dict["state"])
    for old, group in zip(saved, groups, strict=True):
        for index, (number, param) in enumerate(zip(old["params"], group["params"], strict=True)):
            if number in state:
                try:
                    state[number] = _fitted_state(state[number], param, old)
                except ValueError as error:
                    raise ValueError(f"state_dict: {name_of(group, index)}: {error}") from None
    raws = [entries[key] for entries in state.values() for key in entries if key.startswith("gsnr")]
    for completed in saved:
        if completed["gsnr_max"] == UNLATCHED:  # release 1.0.3 keeps none
            completed["gsnr_max"] = max(raws, default=UNLATCHED)
    return {**state_dict, "state": state, "param_groups": saved}


def _fitted_group(saved: Mapping[str, Any], group: Group) -> Group:
    """The saved options, completed from the optimizer's own where they are older than an option."""
    if "eps" not in saved or not {"lr", "momentum", "weight_decay"} <= set(saved):
        raise ValueError(
            f"state_dict: a group has the options {sorted(saved)}, which are not those of SGDSaI"
        )
    if "normalize" not in saved:  # release 1.0.3, whose lr multiplies the raw, unbiased G_snr
        saved = {"normalize": False, "unbiased": True, "measure_first": False, "gsnr_max": UNLATCHED, **saved}
        saved = {"scale": "gsnr", "blocks": "tensor", "split": 1, "maximize": False, **saved}
    # older states are as they are
    saved = {"state_dtype": None, "rounding": "nearest", "gsnr_rms": UNLATCHED, **saved}
    completed = {**group, **saved}
    if completed["scale"] not in RULES:  # a callable or a dict, which was saved as its name
        if not (callable(group["scale"]) or is_given(group["scale"])):
            raise ValueError(
                f"state_dict: its scale rule is {completed['scale']}; give that rule to the optimizer"
            )
        completed["scale"] = group["scale"]
    return completed


def _fitted_state(saved: Mapping[str, Any], param: Tensor, group: Group) -> dict[str, Any]:
    keys = gsnr_keys(group["split"])
    foreign = set(saved) - {"momentum_buffer", "momentum_absmax", "compensation", *keys}
    if foreign:
        raise ValueError(f"holds {sorted(foreign)}, which SGDSaI does not keep; it is another optimizer's")
    missing = set(keys) - set(saved)
    if missing:
        raise ValueError(f"lacks {sorted(missing)}")
    if "momentum_buffer" not in saved and group["momentum"] != 0 and not group["measure_first"]:
        raise ValueError("lacks 'momentum_buffer'")
    like: dict[str, Any] = {"momentum_buffer": param, "compensation": param}
    if "momentum_absmax" in saved:
        precision.create_momentum(like, param, "8bit", group["split"])
    fitting: dict[str, Any] = {key: _latched_or_not(saved[key]) for key in keys}
    for name in set(saved) - set(keys):
        value = saved[name]
        if not isinstance(value, Tensor) or value.shape != like[name].shape:
            has = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} is {has}, the parameter {tuple(param.shape)}")
        fitting[name] = _Packed(value)
    return fitting


def _latched_or_not(raw: float | Tensor) -> float:
    """A saved G_snr as a float. Release 1.0.3 saves 0 or NaN for blocks that it could not measure."""
    value = float(raw)
    return value if 0.0 < value < math.inf else UNLATCHED
