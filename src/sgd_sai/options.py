"""The options of a parameter group: what is allowed, and the errors that name what is not."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sgd_sai.distributed import check_covers, is_spread, told_by_ranks
from sgd_sai.messages import listed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

RULES = ("gsnr", "sqrt_d")
ROUNDINGS = ("nearest", "stochastic", "kahan")
STATE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FUSED_DEVICES = ("cpu", "cuda")

#: A parameter group as torch.optim keeps it: "params" and the options of `SGDSaI`.
Group = dict[str, Any]


def check_dense(named: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise for the first sparse gradient, of which no g-SNR is defined, by its parameter's name."""
    for name, grad in named:
        if grad is not None and grad.layout != torch.strided:
            raise ValueError(
                f"{name}: its gradient is sparse ({grad.layout}); allowed: dense, which nn.Embedding gives "
                "with sparse=False"
            )


def is_given(scale: object) -> bool:
    """True for a scale that gives the raw G_snr of each parameter by its name."""
    return isinstance(scale, Mapping)


def check_given(groups: list[Group], process_group: ProcessGroup | None = None) -> None:
    """Raise, on every rank, for scales by name that no parameter has, or that are others on other ranks."""
    names = {name for group in groups for name in group.get("param_names", ())}
    given = {
        name: raw for group in groups if is_given(group["scale"]) for name, raw in group["scale"].items()
    }
    if process_group is not None:
        of_ranks = told_by_ranks((names, given), process_group)
        names = names.union(*(of_rank for of_rank, _ in of_ranks))
        for rank, (_, of_rank) in enumerate(of_ranks):
            if of_rank != of_ranks[0][1]:
                raise ValueError(
                    f"scale: rank {rank} of process_group is given other scales than rank 0; allowed: the "
                    "same on all, measured on one and broadcast"
                )
    unknown = given.keys() - names
    if unknown:
        raise ValueError(
            f"scale: names {len(unknown)} that are no parameters: {listed(unknown)}; allowed: "
            "the names of all parameters, or with process_group those of the whole model"
        )


def check_whole(param: Tensor, group: Group, plain: bool) -> None:
    """Reject parameters that DeepSpeed or FSDP1 has flattened: per-tensor statistics cannot be recovered.

    Args:
        param: which gets its state.
        group: that of the parameter.
        plain: whether the user gave tensors that are no nn.Parameter, as DeepSpeed's pieces are none.
    """
    deepspeed = "deepspeed" in sys.modules and not isinstance(param, nn.Parameter) and not plain
    fsdp1 = getattr(param, "_fsdp_flattened", False)
    given = is_given(group["scale"])
    if given and len(group["param_names"]) != len(group["params"]):
        raise ValueError(
            f"scale: given for {len(group['param_names'])} parameters of a group, of which a wrapper has made"
            f" {len(group['params'])} flat tensor(s); allowed: one group for each parameter, "
            "[{'params': [named]} for named in model.named_parameters()]"
        )
    if (deepspeed or fsdp1) and not given:
        wrapper = "DeepSpeed" if deepspeed else "FullyShardedDataParallel"
        raise ValueError(
            f"params: {wrapper} has cut them into flat pieces, in which no block can be measured; allowed: "
            "scale=measure_scales(model, loss), called before the model is wrapped (docs/distributed.md)"
        )


def check_options(options: Group) -> None:
    """Raise for the first option that is not allowed, by name."""

    def number(name: str, allowed: str, holds: Callable[[float], bool]) -> None:
        given = options[name]
        if name == "lr" and isinstance(given, Tensor):
            if given.numel() != 1 or given.is_complex():
                raise ValueError(
                    f"lr: given a {given.dtype} tensor of shape {tuple(given.shape)}; allowed: one real"
                )
        elif isinstance(given, bool) or not isinstance(given, Real):
            raise TypeError(f"{name}: given {given!r}; allowed: {allowed}")
        if not holds(float(given.detach() if isinstance(given, Tensor) else given)):
            raise ValueError(f"{name}: given {given!r}; allowed: {allowed}")

    number("lr", "a finite number ≥ 0, or a 0-dim tensor of one", lambda x: 0.0 <= x < math.inf)
    number("momentum", "a number in [0, 1)", lambda x: 0.0 <= x < 1.0)
    number("eps", "a finite number ≥ 0", lambda x: 0.0 <= x < math.inf)
    number("weight_decay", "a finite number ≥ 0", lambda x: 0.0 <= x < math.inf)
    for name in ("maximize", "capturable", "differentiable", "unbiased", "measure_first"):
        if not isinstance(options[name], bool):
            raise TypeError(f"{name}: given {options[name]!r}; allowed: True or False")
    if options["normalize"] != "rms" and not isinstance(options["normalize"], bool):
        raise TypeError(f"normalize: given {options['normalize']!r}; allowed: True, False or 'rms'")
    for name in ("foreach", "fused"):
        if options[name] is not None and not isinstance(options[name], bool):
            raise TypeError(f"{name}: given {options[name]!r}; allowed: True, False or None")
        if options[name] and options["differentiable"]:
            raise ValueError(f"{name}: given True with differentiable=True, which needs the for-loop")
    if options["foreach"] and options["fused"]:
        raise ValueError("fused: given True with foreach=True; allowed: one of the two")
    if is_given(options["scale"]):
        for name, raw in options["scale"].items():
            if isinstance(raw, bool) or not isinstance(raw, Real) or not 0.0 < float(raw) < math.inf:
                raise ValueError(f"scale: given {raw!r} for {name!r}; allowed: a positive, finite number")
        for name, alone in (("blocks", "tensor"), ("split", 1)):
            if options[name] != alone:
                raise ValueError(f"{name}: given {options[name]!r} with a scale by name; allowed: {alone!r}")
        if options["normalize"] == "rms":
            raise ValueError("normalize: given 'rms' with a scale by name; allowed: True or False")
    elif options["scale"] not in RULES and not callable(options["scale"]):
        raise ValueError(
            f"scale: given {options['scale']!r}; allowed: 'gsnr', 'sqrt_d' or a callable, or floats by name"
        )
    if options["blocks"] not in ("tensor", "group"):
        raise ValueError(f"blocks: given {options['blocks']!r}; allowed: 'tensor' or 'group'")
    if not (options["state_dtype"] in (None, "8bit") or options["state_dtype"] in STATE_DTYPES):
        raise ValueError(
            f"state_dtype: given {options['state_dtype']!r}; allowed: None, '8bit', "
            + ", ".join(str(dtype) for dtype in STATE_DTYPES)
        )
    if options["rounding"] not in ROUNDINGS:
        raise ValueError(
            f"rounding: given {options['rounding']!r}; allowed: {', '.join(map(repr, ROUNDINGS))}"
        )
    if options["differentiable"] and (options["state_dtype"] is not None or options["rounding"] != "nearest"):
        raise ValueError(
            "differentiable: given True with a state_dtype or a rounding, which cut the gradient"
        )
    split = options["split"]
    if isinstance(split, bool) or not isinstance(split, int):
        raise TypeError(f"split: given {split!r}; allowed: an integer ≥ 1")
    if split < 1:
        raise ValueError(f"split: given {split}; allowed: an integer ≥ 1")
    if split > 1 and options["blocks"] == "group":
        raise ValueError(
            f"split: given {split} with blocks='group'; a group that is one block cannot be split"
        )
    if split > 1 and options["measure_first"]:
        raise ValueError(f"split: given {split} with measure_first=True, which knows whole parameters only")


def check_params(group: Group, defaults: Group, others: list[Group], process_group: Any = None) -> None:
    """Raise for a parameter given twice, or one that an option or the process group does not fit."""
    options = {**defaults, **group}
    split = options["split"]
    if is_given(options["scale"]):
        if not all(isinstance(given, tuple) for given in group["params"]):
            raise ValueError(
                "scale: given by name, for parameters without names; allowed: model.named_parameters()"
            )
        missing = {name for name, _ in group["params"]} - set(options["scale"])
        if missing:
            raise ValueError(f"scale: lacks {len(missing)} of the parameters: {listed(missing)}")
    seen = {id(param) for other in others for param in other["params"]}
    for index, given in enumerate(group["params"]):
        param = given[1] if isinstance(given, tuple) else given
        if not isinstance(param, Tensor):
            continue  # torch's own message names what it takes
        name = repr(given[0]) if isinstance(given, tuple) else f"{index}, of shape {tuple(param.shape)}"
        if id(param) in seen:
            raise ValueError(f"params: parameter {name} is given twice; each may be given once")
        seen.add(id(param))
        if process_group is not None:
            check_covers(process_group, param, name)
        if is_spread(param) and options["state_dtype"] == "8bit":
            raise ValueError(
                f"state_dtype: given '8bit' for parameter {name}, a DTensor, whose blocks of 256 would not "
                "survive another sharding; allowed: None or a torch.dtype"
            )
        if is_spread(param) and options["differentiable"]:
            raise ValueError(f"differentiable: given True for parameter {name}, a DTensor; allowed: False")
        if split > 1 and (param.dim() == 0 or param.size(0) % split):
            raise ValueError(
                f"split: given {split}, which does not divide dim 0 of parameter {name}, {tuple(param.shape)}"
            )
        if options["fused"] and param.device.type not in FUSED_DEVICES:
            raise ValueError(
                f"fused: given True for parameter {name} on {param.device}; "
                f"allowed: on {' and '.join(FUSED_DEVICES)}"
            )
        if options["rounding"] == "stochastic" and param.dtype == torch.float16:
            raise ValueError(
                f"rounding: given 'stochastic' for parameter {name}, which is float16; allowed: 'kahan'"
            )
