"""A parameter as the formulas of `state_bytes` see it: its values are never looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

#: Adam-mini's own defaults, for a model whose configuration does not say: 2048² elements in 32 heads.
HEAD_NUMEL = 2048 * 2048 // 32


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
        whole: the shape of the tensor of which this is a shard along dim 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    trains: bool = True
    tied: bool = False
    embedding: bool = False
    head_numel: int = HEAD_NUMEL
    whole: tuple[int, ...] | None = None

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
        return replace(self, shape=(-(-self.shape[0] // ranks), *self.shape[1:]), whole=self.shape)


def attention(model: nn.Module) -> tuple[int, int] | None:
    """The hidden size and the number of attention heads, if the model's configuration says both."""
    config = getattr(model, "config", None)
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return hidden, heads
    return None


def head_numel(model: nn.Module) -> int:
    """Elements of one head's query projection; by Adam-mini's defaults where the model does not say."""
    found = attention(model)
    return HEAD_NUMEL if found is None else max(found[0] ** 2 // found[1], 1)
