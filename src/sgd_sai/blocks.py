"""The blocks of a parameter group in one step: what moves, and what waits for its scale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor

from sgd_sai import gsnr
from sgd_sai.distributed import Part, is_spread, local, local_parts
from sgd_sai.gsnr import UNLATCHED
from sgd_sai.options import Group, is_given
from sgd_sai.precision import Momentum, Momentum8

#: Blocks as parallel lists of real views: θ, g, m, the raw G_snr, the compensation.
Columns = tuple[Sequence[Any], Sequence[Any], Sequence[Any], Sequence[float], Sequence[Any]]


@dataclass
class Work:
    """What moves in a group, and the blocks still without a scale.

    Attributes:
        columns: what moves; after `collect`, with scales in place of raw G_snr.
        blocks: the same block by block, where `columns` is empty.
        waiting: the blocks without a scale that have a gradient.
        lr, amp, cache: what `update` is given besides.
    """

    columns: Columns = ([], [], [], [], [])
    blocks: list[tuple[Tensor, Tensor, Momentum, float, Tensor | None]] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    lr: float | Tensor = 0.0
    amp: dict[str, Tensor | None] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)

    def collect(self, group: Group) -> bool:
        """Make the columns that `update` takes, each block with its scale; say whether anything moves."""
        self.blocks += [
            (block.param, block.grad, block.momentum, block.state[block.key], block.compensation)
            for block in self.waiting
            if not block.rests
        ]
        if self.blocks:
            self.columns = cast(Columns, tuple(map(list, zip(*self.blocks, strict=True))))
        params, grads, momenta, raws, compensations = self.columns
        self.columns = params, grads, momenta, scales_of(raws, group), compensations
        return bool(params)


@dataclass(slots=True)
class Waiting:
    """A parameter, or a part of one, that is not latched, and where its G_snr belongs."""

    param: Tensor
    grad: Tensor
    momentum: Momentum
    compensation: Tensor | None
    state: dict[str, Any]
    key: str
    part: Part | None  # of the gradient, which may be spread over ranks; None: measured already
    given: float | None  # the raw G_snr where the user gives it
    rests: bool = False  # takes no part in this step's update

    def latch(self, gsnr: float, group: Group) -> None:
        """Freeze G_snr; m₁ is this step's gradient, or with `measure_first` the next one."""
        self.state[self.key] = gsnr
        if group["measure_first"]:
            self.rests = True
            self.state.pop("momentum_buffer", None)  # absent = not begun: m₁ is the next gradient
        else:
            start_momentum(self.momentum, self.grad, group["maximize"])


def plain_columns(
    group: Group, params: Sequence[Tensor], states: Mapping[Tensor, dict[str, Any]]
) -> Columns | None:
    """Those of a group's parameters that have a gradient, if each is one real, dense, latched block here.

    Nearly all are. List by list: what is done for parameters of any kind takes Python longer than a small
    tensor's update.
    """
    if group["split"] != 1 or group["rounding"] == "kahan":
        return None
    params = [param for param in params if param.grad is not None]
    grads: list[Any] = [param.grad for param in params]
    of_params: list[Any] = list(map(states.get, params))
    if not params or None in of_params:
        return None
    raws = [state.get("gsnr", UNLATCHED) for state in of_params]
    if UNLATCHED in raws:
        return None
    if group["momentum"] != 0:  # laid out as its parameter; one of 8 bits is of integers
        momenta: list[Any] = [state.get("momentum_buffer") for state in of_params]
        tensors = grads + momenta
    elif any(map(is_spread, params)):
        return None
    else:
        momenta, tensors = [None] * len(params), grads
    if set(map(type, tensors)) != {Tensor} or {grad.layout for grad in grads} != {torch.strided}:
        return None
    if not all(dtype.is_floating_point for dtype in {tensor.dtype for tensor in tensors}):
        return None
    return params, grads, momenta, raws, [None] * len(params)


def unlatched_blocks(group: Group, work: Work) -> Iterator[list[Waiting]]:
    """The blocks without a scale, each as its parts: all of a group's where the group is one block."""
    if group["blocks"] == "tensor":
        yield from ([part] for part in work.waiting)
    elif work.waiting:
        yield work.waiting


def scales_of(raws: Sequence[float], group: Group) -> list[float]:
    """What multiplies lr for blocks: G̃, or G_snr where the group is not normalised; 0 while unlatched."""
    normalize = group["normalize"]
    by = gsnr.divisor(normalize, group)
    if by <= 0 and any(raw != UNLATCHED for raw in raws):
        raise ValueError(
            f"normalize: {normalize!r} divides by a number that this state lacks, as it was saved before "
            "there was one; allowed: the form in which it was saved"
        )
    if normalize is True:
        return [0.0 if raw == UNLATCHED else gsnr.scale(raw, by) for raw in raws]
    return [0.0 if raw == UNLATCHED else raw / by for raw in raws]


def given_gsnr(group: Group, index: int) -> float | None:
    """The raw G_snr that the user gives for a parameter."""
    return group["scale"][group["param_names"][index]] if is_given(group["scale"]) else None


def start_momentum(momentum: Momentum, grad: Tensor, maximize: bool) -> None:
    """m₁ = g₁."""
    if isinstance(momentum, Tensor):
        momentum.copy_(grad)
        if maximize:
            momentum.neg_()
    elif momentum is not None:
        momentum.write(-grad if maximize else grad)


def blocks_of(
    param: Tensor, grad: Tensor, state: dict[str, Any], group: Group, keys: tuple[str, ...]
) -> Iterable[tuple[Tensor, Tensor, Momentum, Tensor | None, str]]:
    """The blocks of a parameter as views: equal parts along dim 0, complex numbers as pairs of reals."""
    momentum: Tensor | None = state.get("momentum_buffer") if group["momentum"] != 0 else None
    compensation: Tensor | None = None
    if group["rounding"] == "kahan" and param.dtype.itemsize == 2:
        if "compensation" not in state:
            state["compensation"] = torch.zeros_like(param)
        compensation = state["compensation"]
    if len(keys) == 1 and not param.is_complex() and "momentum_absmax" not in state:
        m, c = (None if t is None else local(t) for t in (momentum, compensation))
        return ((local(param), local(grad), m, c, keys[0]),)
    n = len(keys)
    momenta: Iterable[Momentum] = repeat(None)
    if momentum is not None and "momentum_absmax" in state:
        momenta = Momentum8(momentum, state["momentum_absmax"]).parts(n)
    elif momentum is not None:
        momenta = map(gsnr.as_real, local_parts(momentum, n))
    compensations = repeat(None) if compensation is None else local_parts(compensation, n)
    thetas, grads = (map(gsnr.as_real, local_parts(tensor, n)) for tensor in (param, grad))
    return zip(thetas, grads, momenta, compensations, keys, strict=False)
