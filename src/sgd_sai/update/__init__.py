"""One step of Algorithm 1, written several ways behind one signature.

`reference` is the for-loop in the paper's notation. It is the truth: every other way is tested against it.

    reference       foreach=False, fused=False; differentiable=True
    foreach         torch's multi-tensor operations; torch.compile gets these on a GPU
    quantized       momentum in 8 bits, parameters rounded stochastically or with compensation; torch.compile
                    gets it on the CPU
    cpu             fused on the CPU: torch's fused kernel, as few passes over θ, g and m as it allows
    widened         the same for fewer bits: what `quantized` does, in buffers that stay in the cache
    triton_launch   fused on CUDA, for every dtype and rounding: one launch for all tensors of a kind
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from sgd_sai.kernels.tables import available
from sgd_sai.options import Group
from sgd_sai.quantized import Momentum
from sgd_sai.rounding import Rounding
from sgd_sai.update import cpu, foreach, quantized, reference, triton_launch, widened
from sgd_sai.update.pieces import check_shapes

#: Moves parameters in place: see `reference.update` for the arguments.
Update = Callable[..., None]


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Momentum],
    scales: Sequence[float],
    roundings: Sequence[Rounding],
    *,
    lr: float | Tensor,
    step: int | Tensor,
    group: Group,
    narrow: bool,
    compiling: bool,
    amp: dict[str, Tensor | None],
    cache: dict[str, Any],
) -> None:
    """Move the parameters of a group, on whatever devices they are, each the way that is fastest there.

    Args:
        params, grads, momenta, scales, roundings, lr, step: as `reference.update` and `quantized.update`.
        group: the options.
        narrow: True if a momentum has 8 bits, or a parameter is not rounded to nearest.
        compiling: True while torch.compile traces the step.
        amp, cache: for `triton_launch.update`: what a GradScaler hands over, and where its tables are kept.
    """
    if isinstance(lr, Tensor):
        wide = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
        lr = lr.to(torch.promote_types(lr.dtype, wide))  # or 1 − λη would be rounded to its fewer bits
    if compiling and not params[0].is_cpu and len({param.device for param in params}) == 1:
        # Else torch.compile would want a C++ compiler, and half a minute, for one number on the CPU.
        lr, step = (torch.as_tensor(of).to(params[0].device) for of in (lr, step))
    options = {name: group[name] for name in ("momentum", "weight_decay", "maximize")}
    for of_device in _by_device_type(params, grads, momenta, scales, roundings):
        way = _choose(of_device[0][0], group, compiling, narrow)
        if way is reference.update and not compiling:
            for tensors in zip(*of_device[:3], strict=True):
                check_shapes(*tensors)
        if way is triton_launch.update:
            more = {"roundings": of_device[4], "step": step, "cache": cache, **amp}
        elif way in (quantized.update, widened.update):
            more = {"roundings": of_device[4], "step": step}
        else:
            more = {}
        way(*of_device[:4], lr=lr, **options, **more)


def _choose(param: Tensor, group: Group, compiling: bool, narrow: bool) -> Update:
    """The way that the user asked for; None means the fastest there is."""
    if group["differentiable"]:
        return reference.update
    if compiling and param.is_cpu:
        return quantized.update  # it becomes one loop for each block, which the lists of `foreach` do not
    if compiling or group["foreach"]:
        return quantized.update if narrow else foreach.update
    if not group["fused"] and (group["foreach"], group["fused"]) != (None, None):
        return quantized.update if narrow else reference.update
    if isinstance(param, FakeTensor):  # kernels want data
        return quantized.update if narrow else foreach.update
    if available(param.device) and (group["fused"] or not param.is_cpu):
        return triton_launch.update
    if param.is_cpu:
        return widened.update if narrow else cpu.update
    if group["fused"]:
        raise RuntimeError(
            f"fused=True requires Triton, which is unavailable on {param.device}; use foreach=True"
        )
    return quantized.update if narrow else foreach.update


def is_moved_by_kernel(param: Tensor, group: Group) -> bool:
    """True if our own kernel moves a parameter; it also divides the gradient by a GradScaler's scale."""
    return available(param.device) and _choose(param, group, False, False) is triton_launch.update


def _by_device_type(params: Sequence[Tensor], *others: Sequence[Any]) -> list[tuple[Sequence[Any], ...]]:
    """The lists as they are if all parameters are on one kind of device, else a set of lists for each."""
    if len({param.device for param in params}) == 1:
        return [(params, *others)]
    types = [param.device.type for param in params]
    places = {kind: [i for i, of in enumerate(types) if of == kind] for kind in dict.fromkeys(types)}
    return [tuple([whole[i] for i in of] for whole in (params, *others)) for of in places.values()]


def lr_of(group: Group, compiling: bool) -> float | Tensor:
    """The learning rate of a group as `update` takes it."""
    lr: float | Tensor = group["lr"]
    if isinstance(lr, Tensor):
        return lr.reshape(())  # of shape (1,) it would lend scalars that shape
    if compiling:  # a float would be compiled in, and again for each value
        return torch.tensor(lr, dtype=torch.float64, device="cpu")
    return lr
