"""What a plan needs to know of a model's parameters; their values are never looked at."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

# Adam-mini's own defaults, for a model whose configuration does not say: 2048² elements in 32 heads.
_HEAD_NUMEL = 2048 * 2048 // 32


@dataclass(frozen=True)
class Parameter:
    """A parameter tensor: its shape and dtype, and its place in the model.

    Attributes:
        name: as `nn.Module.named_parameters` gives it first.
        shape, dtype: of the tensor.
        trains: it gets a gradient and optimizer state.
        tied: more than one module uses it.
        embedding: it is the weight of an `nn.Embedding`, or of the model's output embedding.
        head_numel: elements of one attention head's query projection in this model, hidden² / heads.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    trains: bool = True
    tied: bool = False
    embedding: bool = False
    head_numel: int = _HEAD_NUMEL

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def reals(self) -> int:
        """Number of real numbers: a complex element is two."""
        return self.numel * (2 if self.dtype.is_complex else 1)

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return self.numel * self.dtype.itemsize

    def shard(self, ranks: int) -> Parameter:
        """The largest of `ranks` shards along dim 0: ⌈rows / ranks⌉ rows. A scalar is not divided."""
        if not self.shape:
            return self
        return replace(self, shape=(-(-self.shape[0] // ranks), *self.shape[1:]))


def parameters(model: nn.Module, dtype: torch.dtype | None = None) -> list[Parameter]:
    """The parameters of `model`, a tied one once, floating ones as if cast to `dtype`.

    Raises:
        ValueError: a lazy parameter, which has no shape yet.
    """
    uses = Counter(id(param) for _, param in model.named_parameters(remove_duplicate=False))
    embeddings = _embeddings(model)
    head_numel = _head_numel(model)
    found = []
    for name, param in model.named_parameters():
        if is_lazy(param):
            raise ValueError(
                f"model: parameter {name!r} is lazy, without a shape; run one batch through it first"
            )
        found.append(
            Parameter(
                name=name,
                shape=tuple(param.shape),
                dtype=_cast(param.dtype, dtype),
                trains=param.requires_grad,
                tied=uses[id(param)] > 1,
                embedding=id(param) in embeddings,
                head_numel=head_numel,
            )
        )
    return found


def buffer_bytes(model: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of the buffers of `model`, a shared one once, floating ones as if cast to `dtype`."""
    return sum(buffer.numel() * _cast(buffer.dtype, dtype).itemsize for buffer in model.buffers())


def _cast(dtype: torch.dtype, to: torch.dtype | None) -> torch.dtype:
    return to if to is not None and dtype.is_floating_point else dtype


def _embeddings(model: nn.Module) -> set[int]:
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    output = getattr(model, "get_output_embeddings", lambda: None)()  # of a model of transformers
    return {id(module.weight) for module in [*modules, output] if module is not None}


def _head_numel(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return max(hidden * hidden // heads, 1)
    return _HEAD_NUMEL
