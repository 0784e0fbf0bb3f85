"""What each optimizer allocates, as a function of the parameters that it trains; one entry each.

State is what lies in `optimizer.state` after the first step: the sum of numel · element size over its
tensors, 0-dim step counters included. Python numbers, such as SGD-SaI's G_snr, are no tensors and count
nothing. Every state formula is tested to the byte against the optimizer itself.

Temporaries are what a step allocates besides, at its peak. `None`: not known, and not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sgd_sai.memory.parameters import Parameter

#: Bytes as a function of the parameters that an optimizer trains.
Formula = Callable[[Sequence[Parameter]], int]

#: 8-bit state: one byte an element and one float32 for each block of so many elements …
BLOCK = 256
#: … but float32 for tensors of fewer elements than this.
MIN_8BIT = 4096

_STEP = 4  # a step counter of torch.optim: a 0-dim float32 tensor


@dataclass(frozen=True)
class Entry:
    """An optimizer as the planner knows it.

    Attributes:
        name: what `plan` and the command line call it.
        label: what a table calls it.
        state: bytes of its state.
        temporaries: bytes that a step allocates at its peak, or None where that is not known.
        state_dtype: of the momentum, where the optimizer leaves the choice.
        releases: its step can run parameter by parameter inside backward, with gradient release.
    """

    name: str
    label: str
    state: Formula
    temporaries: Formula | None
    state_dtype: str | None = None
    releases: bool = True


def eight_bit(numel: int) -> int:
    """Bytes of one block-wise 8-bit state tensor of `numel` elements."""
    return numel + 4 * -(-numel // BLOCK) if numel >= MIN_8BIT else 4 * numel


def _each(state: Callable[[Parameter], int]) -> Formula:
    return lambda params: sum(state(param) for param in params)


def _nothing(params: Sequence[Parameter]) -> int:
    return 0


_as_parameters = _each(lambda param: param.bytes)


def _adam(param: Parameter) -> int:
    """exp_avg, exp_avg_sq, step."""
    return 2 * param.bytes + _STEP


def _adam_8bit(params: Sequence[Parameter]) -> int:
    """state1, state2, their block maxima, and two tables of 256 float32 that all tensors share."""
    tables = 2 * 256 * 4 if any(param.numel >= MIN_8BIT for param in params) else 0
    return sum(2 * eight_bit(param.numel) for param in params) + tables


def _adafactor(param: Parameter) -> int:
    """Row and column factors of the last two dimensions, or the whole variance of a vector; step."""
    if len(param.shape) < 2:
        return param.bytes + _STEP
    *batch, rows, columns = param.shape
    factors = Parameter(param.name, (*batch, rows + columns), param.dtype)
    return factors.bytes + _STEP


def _muon(param: Parameter) -> int:
    """Momentum of a hidden matrix; everything else, embeddings included, is AdamW's."""
    return param.bytes if len(param.shape) == 2 and not param.embedding else _adam(param)


# Adam-mini 1.1.1 tells a parameter's kind by what its name contains.
_HEADS = ("k_proj", "q_proj", "wq", "wk", "query", "key")
_ROWS = (
    *("embed", "embd", "wte", "lm_head", "output", "final_layer", "v_proj", "wv", "value"),
    *("feed_forward", "linear", "mlp", "o_proj", "wo", "attn.proj"),
)


def _adam_mini(param: Parameter) -> int:
    """m, and v of a bias; else one v for each head of queries and keys, for each row, or for the tensor.

    Adam-mini rejects a tensor that is no matrix and has one of `_ROWS` in its name; under any other name
    it gets one v, which is what is counted.
    """
    name = param.name.lower()
    if "bias" in name:
        return 2 * param.bytes
    second = 1
    if any(word in name for word in _HEADS):
        second = -(-param.numel // param.head_numel)
    elif any(word in name for word in _ROWS) and len(param.shape) == 2:
        second = param.shape[0]
    return param.bytes + second * param.dtype.itemsize


def _prodigy(param: Parameter) -> int:
    """exp_avg, exp_avg_sq, s, and p0, the initial value: one element for a tensor that starts as zeros."""
    return 4 * param.bytes


def _momentum(param: Parameter) -> int:
    """float32 at least, as `SGDSaI` keeps it unless told otherwise."""
    return param.numel * torch.promote_types(param.dtype, torch.float32).itemsize


def _momentum_bf16(param: Parameter) -> int:
    """There is no complex bfloat16: of a complex parameter it is complex64."""
    return param.numel * (8 if param.dtype.is_complex else 2)


def _momentum_8bit(param: Parameter) -> int:
    return eight_bit(param.reals) if param.reals >= MIN_8BIT else _momentum(param)


#: The optimizers. Those of torch.optim as they choose themselves on a GPU, which is foreach.
OPTIMIZERS = (
    Entry("adamw", "AdamW", _each(_adam), temporaries=_as_parameters),  # √v of every parameter at once
    Entry("adam", "Adam", _each(_adam), temporaries=_as_parameters),
    Entry("adam-mini", "Adam-mini", _each(_adam_mini), temporaries=None),
    Entry("prodigy", "Prodigy", _each(_prodigy), temporaries=None, releases=False),
    Entry("muon", "Muon + AdamW", _each(_muon), temporaries=None),
    Entry("adafactor", "Adafactor", _each(_adafactor), temporaries=None),
    Entry("adam-8bit", "8-bit Adam", _adam_8bit, temporaries=None),
    Entry("sgd-momentum", "SGD, momentum", _as_parameters, temporaries=_nothing),
    Entry("sgd", "SGD", _nothing, temporaries=_nothing),
    # A step of SGD-SaI works in pieces of bounded size: tens of MiB at most, whatever the model's.
    Entry("sgd-sai", "SGD-SaI", _each(_momentum), temporaries=_nothing, state_dtype="fp32"),
    Entry("sgd-sai", "SGD-SaI, bf16 m", _each(_momentum_bf16), temporaries=_nothing, state_dtype="bf16"),
    Entry("sgd-sai", "SGD-SaI, 8-bit m", _each(_momentum_8bit), temporaries=_nothing, state_dtype="8bit"),
    Entry("sgd-sai", "SGD-SaI, no m", _nothing, temporaries=_nothing, state_dtype="none"),
)


def names() -> list[str]:
    """The optimizers' names, each once."""
    return list(dict.fromkeys(entry.name for entry in OPTIMIZERS))


def entries(name: str, state_dtype: str | None = None) -> list[Entry]:
    """The entries of the optimizer `name`: one, or one for each state dtype unless one is given.

    Raises:
        ValueError: an unknown optimizer, or a state dtype that it does not keep.
    """
    known = [entry for entry in OPTIMIZERS if entry.name == name]
    if not known:
        raise ValueError(f"optimizer: given {name!r}; allowed: {', '.join(names())}")
    found = [entry for entry in known if state_dtype in (None, entry.state_dtype)]
    if not found:
        choices = [entry.state_dtype for entry in known if entry.state_dtype]
        allowed = ", ".join(choices) or "none, as its state has the parameters' dtype"
        raise ValueError(f"state_dtype: given {state_dtype!r} for {name}; allowed: {allowed}")
    return found
