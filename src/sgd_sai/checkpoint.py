"""The state of `SGDSaI` as it is saved and loaded.

torch.optim casts floating state to the parameter's dtype when it loads, which would round a float32
momentum to bfloat16. Momentum is therefore packed while torch places the state, and unpacked after.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from sgd_sai.compensation import from_bytes, in_bytes, is_in_bytes
from sgd_sai.distributed.layout import laid_out_as, local
from sgd_sai.fitting import (
    BEGUN,
    ORDER,
    WHAT_THEN,
    Packed,
    check_containers,
    fitted_group,
    fitted_state,
    has_gsnr,
)
from sgd_sai.gsnr import UNLATCHED, has_data, hold_something, measure
from sgd_sai.messages import listed, name_of, warn
from sgd_sai.names import in_order_of
from sgd_sai.options import Group, check_options, check_param, is_given
from sgd_sai.quantized import WIDE, absmax_in_shape, absmax_of, block_by_index
from sgd_sai.state import (
    UNKNOWN,
    create_momentum,
    fill_normalizers,
    forget_momentum,
    has_scale,
    lacks_momentum,
    mark_wide,
    momentum_values,
    normalizers_of,
    told_normalizers,
)

if TYPE_CHECKING:
    from sgd_sai.optimizer import SGDSaI


def portable(state_dict: dict[str, Any], optimizer: SGDSaI) -> dict[str, Any]:
    """`state_dict` of the optimizer in a form that any checkpoint format takes, with the same keys always.

    Scale rules and dtypes become their names, NumPy's numbers Python's, and a momentum that has not begun
    zeros that say so.
    """
    known = optimizer.normalizers
    for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        saved.update(known)  # others may hold the group, and have written theirs into it
        for option, value in saved.items():
            if isinstance(value, Real) and not isinstance(value, int):
                saved[option] = float(value)
            elif isinstance(value, torch.dtype):
                saved[option] = str(value)
        saved["rounding_step"] = int(saved.get("rounding_step", 0))
        saved[ORDER] = "rows"
        if callable(saved["scale"]):
            rule = saved["scale"] if hasattr(saved["scale"], "__qualname__") else type(saved["scale"])
            saved["scale"] = f"{rule.__module__}.{rule.__qualname__}"
        elif is_given(saved["scale"]):
            saved["scale"] = "given by name"
        for number, param in zip(saved["params"], group["params"], strict=True):
            if number in state_dict["state"]:
                entries = {**UNKNOWN, **state_dict["state"][number]}
                if getattr(entries.get("compensation"), "dtype", None) == torch.int16:
                    entries["compensation"] = in_bytes(entries["compensation"])
                state_dict["state"][number] = _with_momentum(entries, param, group)
    return state_dict


def _with_momentum(entries: dict[str, Any], param: Tensor, group: Group) -> dict[str, Any]:
    """A parameter's state with its momentum, also where there is none yet; see `BEGUN` and `WIDE`."""
    if group["momentum"] == 0 or is_lazy(param):
        return entries
    begun = not lacks_momentum(entries, group)
    completed = {**entries, BEGUN: begun if has_scale(entries, group) else UNLATCHED}
    if not begun:
        create_momentum(completed, param, group)
    if completed["momentum_buffer"].dtype != torch.int8:
        mark_wide(completed, param, group)
        if "momentum_absmax" in completed:
            completed["momentum_absmax"] = absmax_of(param, group["split"], WIDE)
    return completed


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
                if key == "momentum_absmax" and isinstance(value, Tensor) and not is_lazy(param):
                    state[param][key] = absmax_in_shape(value, param, group["split"])  # of an older pickle
                if isinstance(value, Packed):
                    state[param][key] = value = laid_out_as(value.tensor, param).to(param.device)
                if key == "compensation" and value is not None and is_in_bytes(value, param):
                    state[param][key] = from_bytes(value)
        if isinstance(group["scale"], _Kept):
            group["scale"] = group["scale"].rule
    _settle_normalizers(state, groups)


def renew(optimizer: SGDSaI) -> None:
    """Bring an optimizer up to date that was pickled by an earlier version."""
    for key in (*UNKNOWN, "rounding_step"):
        optimizer.defaults.pop(key, None)
    for group in optimizer.param_groups:
        for param in group["params"]:
            block_by_index(optimizer.state.get(param, {}), parts=group["split"])


def _settle_normalizers(state: MutableMapping[Tensor, dict[str, Any]], groups: list[Group]) -> None:
    """States of before kept the normalisers in the groups alone; release 1.0.3 has none."""
    known = normalizers_of(groups, state, told=told_normalizers(groups))
    if known["gsnr_max"] == UNLATCHED:
        return  # the groups may know those of other ranks
    for group in groups:
        group.update(known)
        for param in group["params"]:
            entries = state.get(param, {})
            if has_scale(entries, group):
                fill_normalizers(entries, known)


def fitted(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `state_dict` that fits `optimizer`, momentum packed; ValueError says what does not fit.

    A pre-hook of `load_state_dict`: it runs before anything of the optimizer changes.
    """
    check_containers(state_dict)
    groups = optimizer.param_groups
    saved = in_order_of(groups, state_dict["param_groups"])
    sizes, own = [len(group["params"]) for group in saved], [len(group["params"]) for group in groups]
    if sizes != own:
        raise ValueError(f"state_dict: has groups of {sizes} parameters; the optimizer has groups of {own}")
    fitting = [fitted_group(old, group) for old, group in zip(saved, groups, strict=True)]
    for completed in fitting:
        try:
            check_options(completed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"state_dict: {error}") from None
        completed["scale"] = _Kept(completed["scale"])
    orders = [completed.pop(ORDER, None) for completed in fitting]
    state = _by_number(state_dict["state"], fitting, groups)
    # Before there was a "gsnr_max" in a state, a momentum of which nothing is said had begun.
    silent = {
        key
        for key in _numbers(fitting).intersection(state)
        if state[key].get(BEGUN, UNLATCHED if "gsnr_max" in state[key] else True) == UNLATCHED
    }
    fresh = []
    wide = _wide(state, fitting)
    for old, group, order in zip(fitting, groups, orders, strict=True):
        # A flat state is loaded by the keys of the optimizer's own, which lacks `ORDER`.
        tells = order == "rows" or (order is None and group["state_dtype"] != "8bit")
        for index, (number, param) in enumerate(zip(old["params"], group["params"], strict=True)):
            if number in state:
                try:
                    check_param(old, param, "it")
                    if param.requires_grad and not has_gsnr(state[number]):
                        fresh.append(name_of(group, index))
                    of = {"order": order, "wide": number in wide, "tells": tells}
                    state[number] = fitted_state(state[number], param, old, **of)
                except ValueError as error:
                    raise ValueError(f"state_dict: {name_of(group, index)}: {error}") from None
            elif param.requires_grad:
                fresh.append(name_of(group, index))
    if state and fresh:  # not an error: it may have been frozen until now
        warn(f"state_dict: lacks {len(fresh)} of the trained parameters, which begin anew: {listed(fresh)}")
    _forget_what_waits(state, silent, fitting)
    if getattr(optimizer, "process_group", None) is None and not any(
        has_scale(state.get(number, {}), group) for group in fitting for number in group["params"]
    ):
        for completed in fitting:  # normalisers without a scale would be those of another run
            completed.update(UNKNOWN)
    return {**state_dict, "state": state, "param_groups": fitting}


def _numbers(fitting: Sequence[Group]) -> set[Any]:
    """The numbers, or names, of the parameters of saved groups."""
    return {number for group in fitting for number in group["params"]}


def _by_number(saved: Mapping[Any, Any], fitting: Sequence[Group], groups: list[Group]) -> dict[Any, Any]:
    """The saved state by the numbers in its groups; what is no parameter's is an entry of another tool.

    Raises:
        ValueError: there is a state of a parameter that is in no group, or nothing of ours is in it.
    """
    numbers = _numbers(fitting)
    by_name = {str(number): number for number in numbers}  # formats such as JSON make strings of them
    state = {by_name.get(key, key): entries for key, entries in saved.items()}
    unknown = {key for key in state.keys() - numbers if any(isinstance(n, type(key)) for n in numbers)}
    if unknown:
        raise ValueError(f"state_dict: has state of {sorted(map(str, unknown))}, which are in no group")
    ours = [state[number] for number in numbers.intersection(state)]
    if not all(isinstance(entries, Mapping) for entries in ours):
        raise ValueError("state_dict: its 'state' is not a dict of dicts, one for each parameter")
    trained = any(
        state.get(number) and param.requires_grad and not is_lazy(param)
        for completed, group in zip(fitting, groups, strict=True)
        for number, param in zip(completed["params"], group["params"], strict=True)
    )
    if trained and not any(map(has_gsnr, ours)):
        raise ValueError(f"state_dict: holds no 'gsnr'; it is another optimizer's. {WHAT_THEN}")
    return state


def _wide(state: Mapping[Any, Any], fitting: Sequence[Group]) -> set[Any]:
    """The parameters of a saved state whose scales are `WIDE`. On DTensors all ranks learn the same."""
    # In the order of the groups: every rank measures the same one at a time.
    numbers = [number for group in fitting for number in group["params"] if number in state]
    absmaxes = {number: state[number].get("momentum_absmax") for number in numbers}
    # A tool that saves `optimizer.state` as it is has the number alone.
    wide = {number for number, absmax in absmaxes.items() if isinstance(absmax, Real) and absmax == WIDE}
    of_tensors = {n: a for n, a in absmaxes.items() if isinstance(a, Tensor) and has_data(local(a))}
    moments = measure([[absmax] for absmax in of_tensors.values()]) if of_tensors else []
    return wide.union(number for number, of in zip(of_tensors, moments, strict=True) if of.total < 0)


def _forget_what_waits(state: dict[Any, Any], silent: Collection[Any], groups: Sequence[Group]) -> None:
    """Remove each momentum of zeros of which the saved state does not say if it has begun: it has not.

    torch.distributed.checkpoint loads a flat state by the keys of the optimizer's own, which lacks `BEGUN`.
    (A momentum that has begun and is zero, since all gradients were, then begins once more.) And it fills
    what a state lacks with what the optimizer has, whose blocks have no scale yet.
    """
    asked = [
        state[number]
        for group in groups
        for number in group["params"]
        if number in silent and has_scale(state[number], group) and "momentum_buffer" in state[number]
    ]
    values: list[Any] = list(map(momentum_values, asked))
    for entries, begun in zip(asked, hold_something([packed.tensor for packed in values]), strict=True):
        if not begun:
            forget_momentum(entries)
