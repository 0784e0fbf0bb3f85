"""The options of `SGDSaI`: one table of what is allowed, and the errors that name what is not.

To add an option, add it to `OPTIONS`, to the constructor and docstring of `SGDSaI`, and, where it does not go
with another option or with some parameters, to `CONFLICTS` or `PARAMETER_CONFLICTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sgd_sai.distributed.collectives import check_covers
from sgd_sai.distributed.layout import is_spread
from sgd_sai.messages import listed, name_of, shape_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

RULES = ("gsnr", "sqrt_d")
STATE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FUSED_DEVICES = ("cpu", "cuda")

#: A parameter group as torch.optim keeps it: "params" and the options of `SGDSaI`.
Group = dict[str, Any]


class Option(NamedTuple):
    """The values that an option may have.

    Attributes:
        allowed: those values in words, for messages and the documentation.
        is_kind: False for a value of another type: a TypeError.
        holds: False for a value of the right type that is not allowed: a ValueError.
    """

    allowed: str
    is_kind: Callable[[Any], bool]
    holds: Callable[[Any], bool]

    def allows(self, given: Any) -> bool:
        """True for a value that the option may have."""
        return self.is_kind(given) and self.holds(given)


def is_given(scale: object) -> TypeGuard[Mapping[str, float]]:
    """True for the option `scale` as raw G_snr by the names of parameters."""
    return isinstance(scale, Mapping)


def measures(group: Group) -> bool:
    """True if the group's scales depend on the values of gradients."""
    return group["normalize"] == "rms" or not (is_given(group["scale"]) or group["scale"] == "sqrt_d")


def _is_number(given: Any) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool)


def _number(allowed: str, holds: Callable[[Any], bool]) -> Option:
    return Option(allowed, _is_number, holds)


def _one_of(*values: Any) -> Option:
    """Equal to one of the values, and of its type: 1 is not True."""
    first, last = ", ".join(map(repr, values[:-1])), repr(values[-1])
    return Option(
        f"{first} or {last}",
        lambda given: isinstance(given, tuple({type(value) for value in values})),
        lambda given: any(isinstance(given, type(value)) and given == value for value in values),
    )


def _is_lr(given: Any) -> bool:
    return isinstance(given, Tensor) or _is_number(given)


def _allowed_lr(lr: Any) -> bool:
    if isinstance(lr, Tensor) and (lr.numel() != 1 or lr.is_complex()):
        return False
    return 0.0 <= float(lr.detach() if isinstance(lr, Tensor) else lr) < math.inf


def _is_scale(scale: Any) -> bool:
    return isinstance(scale, str) or is_given(scale) or callable(scale)


def _allowed_scale(scale: Any) -> bool:
    if is_given(scale):
        return all(_is_number(raw) and 0.0 < float(raw) < math.inf for raw in scale.values())
    return callable(scale) or scale in RULES


def _is_form(normalize: Any) -> bool:
    # An integer is none of its numbers: where 1 stands for True, it would be hundreds of times too small.
    return isinstance(normalize, bool | str) or (
        _is_number(normalize) and not isinstance(normalize, Integral)
    )


def _allowed_form(normalize: Any) -> bool:
    if isinstance(normalize, str):
        return normalize == "rms"
    return isinstance(normalize, bool) or 0.0 < normalize < math.inf


_FLAG = _one_of(True, False)
_WAY = _one_of(True, False, None)
_FINITE = _number("a finite number ≥ 0", lambda given: 0.0 <= given < math.inf)

#: Every option of `SGDSaI`, in the order of its constructor.
OPTIONS: dict[str, Option] = {
    "lr": Option("a finite number ≥ 0, or a tensor of one", _is_lr, _allowed_lr),
    "momentum": _number("a number in [0, 1)", lambda given: 0.0 <= given < 1.0),
    "eps": _FINITE,
    "weight_decay": _FINITE,
    "foreach": _WAY,
    "maximize": _FLAG,
    "capturable": _FLAG,
    "differentiable": _FLAG,
    "fused": _WAY,
    "normalize": Option("True, False, 'rms' or a positive, finite float", _is_form, _allowed_form),
    "unbiased": _FLAG,
    "measure_first": _FLAG,
    "scale": Option(
        "'gsnr', 'sqrt_d', a callable, or positive, finite numbers by parameter name",
        _is_scale,
        _allowed_scale,
    ),
    "blocks": _one_of("tensor", "group"),
    "split": Option(
        "an integer ≥ 1",
        lambda given: isinstance(given, int) and not isinstance(given, bool),
        lambda given: given >= 1,
    ),
    "state_dtype": _one_of(None, "8bit", *STATE_DTYPES),
    "rounding": _one_of("nearest", "stochastic", "kahan"),
}


class Conflict(NamedTuple):
    """An option that does not go with others of the same group.

    Attributes:
        option: the one that the message names.
        arises: True for the options of a group in which it does not.
        why: the end of the message.
    """

    option: str
    arises: Callable[[Group], Any]
    why: str


CONFLICTS = (
    Conflict(
        "foreach",
        lambda given: given["foreach"] and given["differentiable"],
        "with differentiable=True, which needs the for-loop",
    ),
    Conflict(
        "fused",
        lambda given: given["fused"] and given["differentiable"],
        "with differentiable=True, which needs the for-loop",
    ),
    Conflict(
        "fused",
        lambda given: given["fused"] and given["foreach"],
        "with foreach=True; allowed: one of the two",
    ),
    Conflict(
        "blocks",
        lambda given: is_given(given["scale"]) and given["blocks"] != "tensor",
        "with a scale by name; allowed: 'tensor'",
    ),
    Conflict(
        "split",
        lambda given: is_given(given["scale"]) and given["split"] != 1,
        "with a scale by name; allowed: 1",
    ),
    Conflict(
        "normalize",
        lambda given: is_given(given["scale"]) and given["normalize"] == "rms",
        "with a scale by name; allowed: True, False or a number",
    ),
    Conflict(
        "differentiable",
        lambda given: given["differentiable"] and given["state_dtype"] is not None,
        "with a state_dtype, which cuts the gradient; allowed: state_dtype=None",
    ),
    Conflict(
        "differentiable",
        lambda given: given["differentiable"] and given["rounding"] != "nearest",
        "with a rounding, which cuts the gradient; allowed: rounding='nearest'",
    ),
    Conflict(
        "split",
        lambda given: given["split"] > 1 and given["blocks"] == "group",
        "with blocks='group'; a group that is one block cannot be split",
    ),
    Conflict(
        "split",
        lambda given: given["split"] > 1 and given["measure_first"],
        "with measure_first=True, which measures whole parameters only; allowed: 1",
    ),
)


class ParameterConflict(NamedTuple):
    """An option that does not go with some parameters.

    Attributes:
        option: the one that the message names.
        arises: True for the options of a group, and a parameter with which it does not.
        why: the end of the message, in which {param} stands for the parameter.
    """

    option: str
    arises: Callable[[Group, Tensor], Any]
    why: str


def _divides(parts: int, param: Tensor) -> bool:
    return param.dim() > 0 and param.size(0) % parts == 0


PARAMETER_CONFLICTS = (
    ParameterConflict(
        "differentiable",
        lambda given, param: given["differentiable"] and is_spread(param),
        "a DTensor; allowed: False",
    ),
    ParameterConflict(
        "split",
        lambda given, param: (
            given["split"] > 1 and not is_lazy(param) and not _divides(given["split"], param)
        ),
        "whose dim 0 it does not divide",
    ),
    ParameterConflict(
        "fused",
        lambda given, param: given["fused"] and param.device.type not in FUSED_DEVICES,
        f"which is on {{param.device}}; allowed: on {' and '.join(FUSED_DEVICES)}",
    ),
    ParameterConflict(
        "rounding",
        lambda given, param: given["rounding"] == "stochastic" and param.dtype == torch.float16,
        "which is float16; allowed: 'kahan'",
    ),
)


def check_options(options: Group) -> None:
    """Raise for the first option that is not allowed, by name.

    Raises:
        TypeError: an option has a value of another type.
        ValueError: an option has a value that is not allowed, or one that does not go with another option.
    """
    for name, option in OPTIONS.items():
        given = options[name]
        if not option.allows(given):
            error = ValueError if option.is_kind(given) else TypeError
            raise error(f"{name}: given {_shown(given)}; allowed: {option.allowed}")
    for conflict in CONFLICTS:
        if conflict.arises(options):
            raise ValueError(f"{conflict.option}: given {options[conflict.option]!r} {conflict.why}")


def _shown(given: Any) -> str:
    if isinstance(given, Tensor) and given.numel() != 1:
        return f"a {given.dtype} tensor of shape {tuple(given.shape)}"
    if is_given(given):
        name, raw = next((name, raw) for name, raw in given.items() if not _allowed_scale({name: raw}))
        return f"{raw!r} for {name!r}"
    return repr(given)


def check_params(
    group: Group, defaults: Group, others: list[Group], process_group: ProcessGroup | None = None
) -> None:
    """Raise for a parameter given twice, or one that an option or the process group does not fit.

    Args:
        group: a group that is added, its params as the user gave them, (name, parameter) pairs or not.
        defaults: the optimizer's options.
        others: the groups that the optimizer has.
        process_group: the optimizer's.
    """
    options = {**defaults, **group}
    if is_given(options["scale"]):
        # A group of another optimizer has its names apart.
        names = [given[0] for given in group["params"] if isinstance(given, tuple)] or group.get(
            "param_names", ()
        )
        if len(names) != len(group["params"]):
            raise ValueError(
                "scale: given by name, for parameters without names; allowed: model.named_parameters()"
            )
        missing = set(names) - set(options["scale"])
        if missing:
            raise ValueError(f"scale: lacks {len(missing)} of the parameters: {listed(missing)}")
    seen = {id(param) for other in others for param in other["params"]}
    for index, given in enumerate(group["params"]):
        param = given[1] if isinstance(given, tuple) else given
        if not isinstance(param, Tensor):
            continue  # torch's own message names what it takes
        name = repr(given[0]) if isinstance(given, tuple) else str(index)
        name = f"{name} of {shape_of(param)}"
        if id(param) in seen:
            raise ValueError(f"params: parameter {name} is given twice; each may be given once")
        seen.add(id(param))
        if process_group is not None:
            check_covers(process_group, param, name)
        check_param(options, param, f"parameter {name}")


def check_param(options: Group, param: Tensor, name: str) -> None:
    """Raise for the first option that does not fit a parameter, which the message calls by that name."""
    for conflict in PARAMETER_CONFLICTS:
        if conflict.arises(options, param):
            raise ValueError(
                f"{conflict.option}: given {options[conflict.option]!r} for {name}, "
                f"{conflict.why.format(param=param)}"
            )


def check_leaves(groups: list[Group]) -> None:
    """Raise for a parameter that a differentiable step cannot move: autograd lets nobody write to a leaf."""
    for group in groups:
        for index, param in enumerate(group["params"]):
            if param.grad is not None and param.is_leaf and param.requires_grad:
                raise ValueError(
                    f"differentiable: given True for {name_of(group, index)}, a leaf that requires a "
                    "gradient; allowed: what is computed from it, as its clone is"
                )
