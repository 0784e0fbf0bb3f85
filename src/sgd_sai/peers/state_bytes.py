"""The bytes that each optimizer allocates, as functions of the parameters that it trains.

State is what lies in `optimizer.state` after the first step: the sum of numel · element size over its
tensors, 0-dim step counters included. Python numbers, such as SGD-SaI's G_snr, are no tensors and count
nothing. Every state formula is tested to the byte against the optimizer itself.

Temporaries are what a step allocates besides, at its peak. `None`: not known, and not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sgd_sai.peers.parameter import Parameter
from sgd_sai.quantized import cut_between_blocks

#: Bytes as a function of the parameters that an optimizer trains.
Formula = Callable[[Sequence[Parameter]], int]

#: 8-bit state: one byte an element and one float32 for each block of so many elements …
BLOCK = 256
#: … but float32 for tensors of fewer elements than this.
MIN_8BIT = 4096

_STEP = 4  # a step counter of torch.optim: a 0-dim float32 tensor


@dataclass(frozen=True)
class Memory:
    """The formulas of one optimizer.

    Attributes:
        state: bytes of its state.
        temporaries: bytes that a step allocates at its peak, or None where that is not known.
        state_dtype: of the momentum, where the optimizer leaves the choice.
        choice_of: the name of that optimizer, of which this is the choice of `state_dtype`.
        releases: its step can run parameter by parameter inside backward, with gradient release.
    """

    state: Formula
    temporaries: Formula | None = None
    state_dtype: str | None = None
    choice_of: str | None = None
    releases: bool = True


def each(state: Callable[[Parameter], int]) -> Formula:
    """The formula that sums `state` over the parameters."""
    return lambda params: sum(state(param) for param in params)


def nothing(params: Sequence[Parameter]) -> int:
    """No bytes."""
    return 0


def as_parameters(params: Sequence[Parameter]) -> int:
    """As many bytes as the parameters have."""
    return sum(param.bytes for param in params)


def eight_bit(numel: int) -> int:
    """Bytes of one block-wise 8-bit state tensor of `numel` elements."""
    return codes_and_scales(numel) if numel >= MIN_8BIT else 4 * numel


def codes_and_scales(numel: int) -> int:
    """Bytes of `numel` elements in 8 bits, however few."""
    return numel + 4 * -(-numel // BLOCK)


def adam(param: Parameter) -> int:
    """exp_avg, exp_avg_sq, step."""
    return 2 * param.bytes + _STEP


def adam_8bit(params: Sequence[Parameter]) -> int:
    """state1, state2, their block maxima, and two tables of 256 float32 that all tensors share."""
    tables = 2 * 256 * 4 if any(param.numel >= MIN_8BIT for param in params) else 0
    return sum(2 * eight_bit(param.numel) for param in params) + tables


def flash(moments: int, step: int = 0) -> Callable[[Parameter], int]:
    """Of flashoptim: moments in 8 bits, a float16 for 32 elements, 8 more bits of a 16-bit weight, `step`."""

    def state(param: Parameter) -> int:
        of_a_moment = param.numel + 2 * -(-param.numel // 32)
        return moments * of_a_moment + param.numel * (param.dtype.itemsize == 2) + step

    return state


def adafactor(param: Parameter) -> int:
    """Row and column factors of the last two dimensions, or the whole variance of a vector; step."""
    if len(param.shape) < 2:
        return param.bytes + _STEP
    *batch, rows, columns = param.shape
    factors = Parameter(param.name, (*batch, rows + columns), param.dtype)
    return factors.bytes + _STEP


def muon(param: Parameter) -> int:
    """Momentum of a hidden matrix; everything else, embeddings included, is AdamW's."""
    return param.bytes if len(param.shape) == 2 and not param.embedding else adam(param)


#: Adam-mini 1.1.1 tells a parameter's kind by what its name contains: queries and keys, cut into heads …
HEADS = ("k_proj", "q_proj", "wq", "wk", "query", "key")
#: … and what has a rate a row.
_ROWS = (
    *("embed", "embd", "wte", "lm_head", "output", "final_layer", "v_proj", "wv", "value"),
    *("feed_forward", "linear", "mlp", "o_proj", "wo", "attn.proj"),
)


def adam_mini(param: Parameter) -> int:
    """m, and v of a bias; else one v for each head of queries and keys, for each row, or for the tensor.

    Adam-mini rejects a tensor that is no matrix and has one of `_ROWS` in its name; under any other name
    it gets one v, which is what is counted.
    """
    name = param.name.lower()
    if "bias" in name:
        return 2 * param.bytes
    second = 1
    if any(word in name for word in HEADS):
        second = -(-param.numel // param.head_numel)
    elif any(word in name for word in _ROWS) and len(param.shape) == 2:
        second = param.shape[0]
    return param.bytes + second * param.dtype.itemsize


def prodigy(param: Parameter) -> int:
    """exp_avg, exp_avg_sq, s, and p0, the initial value: one element for a tensor that starts as zeros."""
    return 4 * param.bytes


def momentum(param: Parameter) -> int:
    """SGD-SaI's: float32 at least, as `SGDSaI` keeps it unless told otherwise."""
    return param.numel * torch.promote_types(param.dtype, torch.float32).itemsize


def momentum_bf16(param: Parameter) -> int:
    """There is no complex bfloat16: of a complex parameter it is complex64."""
    return param.numel * (8 if param.dtype.is_complex else 2)


def momentum_8bit(param: Parameter) -> int:
    """As `eight_bit`, of the real numbers; small tensors as `momentum`.

    Of a shard the whole counts: one that is cut within blocks is as `momentum_bf16`.
    """
    pair = (2,) if param.dtype.is_complex else ()
    whole = (*(param.shape if param.whole is None else param.whole), *pair)
    if math.prod(whole) < MIN_8BIT:
        return momentum(param)
    cuts = {} if param.whole is None else {0: 1}  # along rows, into however many
    if not cut_between_blocks(whole, cuts):
        return momentum_bf16(param)
    return codes_and_scales(param.reals)
