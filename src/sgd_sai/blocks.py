"""The blocks of a parameter group in one step, and the columns of them that `update` takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgd_sai import gsnr
from sgd_sai.distributed.layout import first_elements, is_spread, local_parts
from sgd_sai.gsnr import UNLATCHED
from sgd_sai.messages import name_of
from sgd_sai.options import Group, check_param
from sgd_sai.quantized import FEW_BITS, Momentum, Momentum8, Momentum16, absmax_in
from sgd_sai.rounding import Noise, Rounding
from sgd_sai.state import EMPTY, State, gsnr_keys, lacks_compensation, needs_compensation

# The types of a momentum that an update rounds as a copy does.
_PLAIN = {Tensor, type(None)}


@dataclass(slots=True)
class Block:
    """A parameter, or one of its equal parts, in one step: real views of the part that this rank holds.

    Attributes:
        param, grad, momentum: θ, g and m.
        rounding: how θ is rounded.
        whole_grad: the gradient of the whole parameter, laid out over ranks as the parameter is.
        state, key: where the block's raw G_snr is kept.
        index: the place of its parameter in the group.
        fresh: True if the momentum was created in this step: it is zeros.
        rests: True if the block does not move in this step.
    """

    param: Tensor
    grad: Tensor
    momentum: Momentum
    rounding: Rounding
    whole_grad: Tensor
    state: State
    key: str
    index: int
    fresh: bool = False
    rests: bool = False

    @property
    def gsnr(self) -> float:
        """The raw G_snr, −1 while unlatched."""
        raw: float = self.state[self.key]
        return raw


class Columns(NamedTuple):
    """The blocks of a group that move in a step, as parallel lists."""

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    momenta: Sequence[Momentum]
    scales: Sequence[float]
    roundings: Sequence[Rounding]

    def parts(self) -> list[tuple[bool, Columns]]:
        """The blocks of few bits, True, and the others, False: each moves alike in whatever company.

        Of few bits is a block whose momentum or parameter is not rounded to nearest.
        """
        if set(map(type, self.momenta)) <= _PLAIN and set(map(type, self.roundings)) <= {type(None)}:
            return [(False, self)]
        narrow = [
            type(m) not in _PLAIN or rounding is not None
            for m, rounding in zip(self.momenta, self.roundings, strict=True)
        ]
        return [(kind, self._where([its is kind for its in narrow])) for kind in dict.fromkeys(narrow)]

    def _where(self, chosen: Sequence[bool]) -> Columns:
        columns: list[Any] = [list(compress(column, chosen)) for column in self]
        return Columns(*columns)


def columns_of(blocks: Sequence[Block], group: Group) -> Columns:
    """The columns of those blocks that do not rest."""
    moving = [block for block in blocks if not block.rests]
    divisors = divisors_of([block.state for block in moving], group["normalize"])
    return Columns(
        params=[block.param for block in moving],
        grads=[block.grad for block in moving],
        momenta=[block.momentum for block in moving],
        scales=scales_of([block.gsnr for block in moving], divisors, group["normalize"]),
        roundings=[block.rounding for block in moving],
    )


def plain_columns(
    group: Group, params: Sequence[Tensor], first: int, states: Mapping[Tensor, State]
) -> Columns | None:
    """The columns of the parameters that have a gradient, if each is one real, dense, latched block here.

    `first` is the place in the group of the first of these parameters.

    Nearly all parameters are. List by list this takes 3 ms less for a thousand tensors than making a `Block`
    of each, which is longer than their update takes.
    """
    if group["split"] != 1:
        return None
    places: Sequence[int] = range(first, first + len(params))
    grads: list[Any] = [param.grad for param in params]
    if any(map(is_, grads, repeat(None))):
        places = [place for place, grad in zip(places, grads, strict=True) if grad is not None]
        params = [param for param, grad in zip(params, grads, strict=True) if grad is not None]
        grads = [grad for grad in grads if grad is not None]
    of_params: list[Any] = list(map(states.get, params))
    if not params or None in of_params:
        return None
    raws = [state.get("gsnr", UNLATCHED) for state in of_params]
    divisors = divisors_of(of_params, group["normalize"])
    if UNLATCHED in raws or set(map(type, raws + divisors)) != {float} or min(divisors) <= 0:
        return None
    momenta: list[Any] = [state.get("momentum_buffer") for state in of_params]
    tensors = grads
    # Without momentum a buffer may still be there, since it was switched off: m_t = g_t.
    kept = group["momentum"] != 0 or any(m is not None for m in momenta)
    if kept:  # laid out as its parameter
        tensors = grads + momenta
    elif any(map(is_spread, params)):
        return None
    if set(map(type, tensors)) != {Tensor} or {grad.layout for grad in grads} != {torch.strided}:
        return None
    if not all(dtype.is_floating_point for dtype in {grad.dtype for grad in grads}):
        return None
    in_8_bits = group["state_dtype"] == "8bit" or any("momentum_absmax" in state for state in of_params)
    if kept and (in_8_bits or not FEW_BITS.isdisjoint(m.dtype for m in momenta)):
        absmaxes = list(map(absmax_in, of_params))
        narrow = [m.dtype == torch.int8 and m.is_contiguous() for m in momenta]
        if narrow != [a is not None for a in absmaxes]:
            return None
        if not all(a is None or (a.is_contiguous() and a.dtype is torch.float32) for a in absmaxes):
            return None
        momenta = list(map(_momentum, momenta, absmaxes, map(Noise, places)))
    roundings = _plain_roundings(places, params, of_params, group)
    if roundings is None:
        return None
    return Columns(params, grads, momenta, scales_of(raws, divisors, group["normalize"]), roundings)


def _plain_roundings(
    places: Sequence[int], params: Sequence[Tensor], states: Sequence[State], group: Group
) -> Sequence[Rounding] | None:
    """How whole parameters are rounded; None where a compensation is still to be created."""
    if group["rounding"] == "nearest":
        return [None] * len(params)
    placed = list(zip(places, params, states, strict=True))
    if any(lacks_compensation(state, param, group) for _, param, state in placed):
        return None
    return [_roundings(place, param, state, group, 1)[0] for place, param, state in placed]


def blocks_of(index: int, param: Tensor, grad: Tensor, state: State, group: Group) -> Iterator[Block]:
    """The blocks of a parameter: its `split` equal parts along dim 0, complex numbers as pairs of reals.

    Args:
        index: the place of the parameter in the group.
        grad: its gradient, laid out over ranks as the parameter is.
        state: its state, with the buffers that the group's options ask for.
    """
    keys = gsnr_keys(group["split"])
    n = len(keys)
    momentum: Tensor | None = state.get("momentum_buffer")
    absmax = absmax_in(state)
    θs, gs = local_parts(param, n), local_parts(grad, n)
    ms: list[Momentum] = [None] * n
    if momentum is not None:
        absmaxes: Sequence[Any] = [None] * n if absmax is None else local_parts(absmax, n)
        # To find the place of a shard takes longer than all else here.
        noises = _noises(index, param, n) if momentum.dtype in FEW_BITS else [Noise(index)] * n
        ms = list(map(_momentum, local_parts(momentum, n), absmaxes, noises))
    roundings = _roundings(index, param, state, group, n)
    for θ, g, m, rounding, key in zip(θs, gs, ms, roundings, keys, strict=True):
        yield Block(gsnr.as_real(θ), gsnr.as_real(g), m, rounding, grad, state, key, index)


def _momentum(stored: Tensor, absmax: Tensor | None, noise: Noise) -> Momentum:
    """The momentum of a block from the tensors that its state has of it."""
    if absmax is not None:
        return Momentum8(stored, absmax, noise)
    real = gsnr.as_real(stored)
    return Momentum16(real, noise) if real.dtype in FEW_BITS else real


def _noises(index: int, param: Tensor, parts: int) -> list[Noise]:
    """That of each of the equal parts of a parameter."""
    reals = 1 + param.is_complex()
    return [Noise(index, reals * first) for first in first_elements(param, parts)]


def _roundings(index: int, param: Tensor, state: State, group: Group, parts: int) -> Sequence[Rounding]:
    """How each of the equal parts of a parameter is rounded."""
    if needs_compensation(param, group):
        return local_parts(state["compensation"], parts)
    if group["rounding"] == "stochastic" and param.dtype == torch.bfloat16:
        return _noises(index, param, parts)
    if group["rounding"] == "stochastic" and param.dtype == torch.float16:  # since a `model.half()`
        check_param(group, param, name_of(group, index))
    return [None] * parts


def with_fresh_momenta(blocks: list[Block], group: Group) -> list[Block]:
    """The blocks of a parameter whose momentum was created in this step: it begins where there is a scale.

    Those were measured before, or momentum was 0 until now, or it was reset.
    """
    for block in blocks:
        block.fresh = True
        if block.gsnr != UNLATCHED:
            start_momentum(block.momentum, block.grad, group["maximize"])
    return blocks


def divisors_of(states: Sequence[State], form: gsnr.Normalize) -> list[Any]:
    """What divides G_snr in a form of lr, for blocks of these states; None or −1 where a state lacks it."""
    if key := gsnr.normalizer_key(form):
        return [state.get(key) for state in states]
    return [gsnr.divisor(form, {})] * len(states)


def scales_of(raws: Sequence[float], divisors: Sequence[float], form: gsnr.Normalize) -> list[float]:
    """The scales that multiply lr, from raw G_snr: G̃, or G_snr where the group is not normalised.

    A block without a scale has 0.

    Args:
        raws: the raw G_snr of some blocks.
        divisors: see `divisors_of`.
        form: the option `normalize`.

    Raises:
        ValueError: a state lacks its divisor.
    """
    if min(divisors, default=1.0) <= 0:  # a block that has no scale, or no elements, needs none
        if any(N <= 0 and G not in (UNLATCHED, EMPTY) for G, N in zip(raws, divisors, strict=True)):
            raise ValueError(
                f"normalize: {form!r} divides by a number that the state lacks: it was saved before there "
                "was one; allowed: the form in which it was saved, or optimizer.measure_again()"
            )
        divisors = [N if N > 0 else 1.0 for N in divisors]
    if form is True:
        return [0.0 if G == UNLATCHED else gsnr.scale(G, N) for G, N in zip(raws, divisors, strict=True)]
    return [0.0 if G == UNLATCHED else G / N for G, N in zip(raws, divisors, strict=True)]


def start_momentum(momentum: Momentum, grad: Tensor, maximize: bool) -> None:
    """m₁ = g₁."""
    if isinstance(momentum, Tensor):
        momentum.copy_(grad)
        if maximize:
            momentum.neg_()
    elif momentum is not None:
        momentum.write(-grad if maximize else grad)
