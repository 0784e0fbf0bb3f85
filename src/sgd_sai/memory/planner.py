"""`plan`: the bytes of training a model, by arithmetic on shapes and dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sgd_sai.memory.optimizers import select
from sgd_sai.memory.parameters import buffer_bytes, parameters
from sgd_sai.peers.parameter import Parameter
from sgd_sai.peers.state_bytes import Formula

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: What each strategy divides among the ranks; `fsdp` divides every tensor along its dim 0 instead.
_DIVIDES: dict[str, set[str]] = {
    "none": set(),
    "zero1": {"state", "temporaries"},
    "zero2": {"state", "temporaries", "gradients"},
    "zero3": {"state", "temporaries", "gradients", "parameters"},
}
SHARDS = (*_DIVIDES, "fsdp")


@dataclass(frozen=True)
class Plan:
    """Bytes of training a model, on the rank that holds most; activations are not among them.

    Attributes:
        optimizer, state_dtype: as `plan` takes them.
        label: of the optimizer's entry.
        parameters: of the model, a tied one once, frozen ones too.
        buffers: of the model, on every rank.
        gradients: of the parameters that train; with gradient release, of those alive at once.
        state: of the optimizer.
        temporaries: what a step allocates at its peak; None where that is not known.
    """

    optimizer: str
    label: str
    state_dtype: str | None
    parameters: int
    buffers: int
    gradients: int
    state: int
    temporaries: int | None

    @property
    def total(self) -> int:
        """All of them, temporaries where they are known."""
        return self.parameters + self.buffers + self.gradients + self.state + (self.temporaries or 0)


def plan(
    model: nn.Module,
    optimizer: str = "sgd-sai",
    *,
    dtype: str | None = None,
    state_dtype: str | None = None,
    gradient_release: bool = False,
    world_size: int = 1,
    shard: str = "none",
) -> Plan:
    """Plan the memory of training `model`. Nothing is allocated; a model on the meta device will do.

    Args:
        model: its parameters with `requires_grad=False` cost their own bytes only.
        optimizer: a name of `PLANNED`.
        dtype: "fp32", "bf16" or "fp16", as if floating parameters and buffers were cast; None: as they are.
        state_dtype: of SGD-SaI's momentum: "fp32" (None), "bf16", "8bit", or "none" with momentum = 0.
            The state of the others has the parameters' dtype, or one of their own.
        gradient_release: the step runs inside backward, and a gradient lives until its own step. A tied
            parameter counts three times: its gradients from the output and from the input, and their sum.
        world_size: number of ranks.
        shard: what they divide. "none": nothing. "zero1": state. "zero2": state and gradients. "zero3":
            state, gradients and parameters; all three as flat, even partitions, rounded up to the byte.
            "fsdp" (FSDP2): every tensor along its dim 0, ⌈rows / world_size⌉ rows on the first rank. What
            a step allocates is divided like the state. Buffers never are. What is gathered during forward
            and backward, and the buckets of communication, are not counted.

    Raises:
        ValueError: an argument that is not allowed, by name.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: given {dtype!r}; allowed: {', '.join(DTYPES)}")
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"world_size: given {world_size!r}; allowed: an integer ≥ 1")
    if shard not in SHARDS:
        raise ValueError(f"shard: given {shard!r}; allowed: {', '.join(SHARDS)}")
    peer, memory = select(optimizer, state_dtype)[0]
    if gradient_release and not memory.releases:
        raise ValueError(f"gradient_release: given with {optimizer}, whose step needs every gradient at once")
    if gradient_release and shard.startswith("zero"):
        raise ValueError(f"gradient_release: given with shard={shard!r}; allowed: with none or fsdp")
    cast = None if dtype is None else DTYPES[dtype]
    params = parameters(model, cast)
    if shard == "fsdp":
        params = [param.shard(world_size) for param in params]
    divides = _DIVIDES.get(shard, set())

    def on_a_rank(kind: str, whole: int) -> int:
        return -(-whole // world_size) if kind in divides else whole

    trained = [param for param in params if param.trains]
    temporaries = _temporaries(memory.temporaries, trained, gradient_release)
    return Plan(
        optimizer=memory.choice_of or peer.name,
        label=peer.label,
        state_dtype=memory.state_dtype,
        parameters=on_a_rank("parameters", sum(param.bytes for param in params)),
        buffers=buffer_bytes(model, cast),
        gradients=on_a_rank("gradients", _gradients(trained, gradient_release)),
        state=on_a_rank("state", memory.state(trained)),
        temporaries=None if temporaries is None else on_a_rank("temporaries", temporaries),
    )


def _gradients(trained: Sequence[Parameter], release: bool) -> int:
    if not release:
        return sum(param.bytes for param in trained)
    # The gradient of a tied output waits while all other layers run backward, until its input's is there.
    waiting = sum(param.bytes for param in trained if param.tied)
    return waiting + max((param.bytes * (2 if param.tied else 1) for param in trained), default=0)


def _temporaries(formula: Formula | None, trained: Sequence[Parameter], release: bool) -> int | None:
    if formula is None:
        return None
    return max((formula([param]) for param in trained), default=0) if release else formula(trained)
