"""From a model to what a plan needs to know of its parameters and buffers."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sgd_sai.peers.parameter import Parameter, head_numel


def parameters(model: nn.Module, dtype: torch.dtype | None = None) -> list[Parameter]:
    """The parameters of `model`, a tied one once, floating ones as if cast to `dtype`.

    Raises:
        ValueError: a lazy parameter, which has no shape yet.
    """
    uses = Counter(id(param) for _, param in model.named_parameters(remove_duplicate=False))
    embeddings = _embeddings(model)
    numel = head_numel(model)
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
                head_numel=numel,
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
