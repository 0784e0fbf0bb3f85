"""SGDSaI in the form in which PyTorch's own test-suite describes an optimizer, and what its tests share."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing._internal.common_optimizers import OptimizerInfo, OptimizerInput
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgd_sai import SGDSaI

#: The ways to compute a step that a user can ask for; the first is the truth.
WAYS = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
    "differentiable": {"differentiable": True},
}


def inputs(device: Any, dtype: Any = None) -> list[OptimizerInput]:
    """Keyword arguments worth testing, one at a time and together."""
    kwargs = {
        "default": {},
        "lr": {"lr": 0.05},
        "tensor lr": {"lr": torch.tensor(0.05)},
        "momentum 0": {"momentum": 0.0},
        "decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "not normalised": {"normalize": False, "lr": 1e-3},
        "release 1.0.3": {"normalize": False, "unbiased": True, "weight_decay": 0.1, "lr": 1e-3},
        "tutorial": {"unbiased": True, "measure_first": True},
        "sqrt_d": {"scale": "sqrt_d"},
        "one block a group": {"blocks": "group"},
        "momentum 0, maximize, decay": {"momentum": 0.0, "maximize": True, "weight_decay": 0.1},
    }
    return [OptimizerInput(params=None, kwargs=k, desc=desc) for desc, k in kwargs.items()]


INFO = OptimizerInfo(
    SGDSaI,
    optim_inputs_func=inputs,
    supported_impls=("foreach", "differentiable", "fused"),
    not_og_supported_flags=(),
    supports_complex=True,
    has_capturable_arg=True,
    supports_fused_on=("cpu", "cuda"),
)
INPUTS = {given.desc: given.kwargs for given in inputs("cpu")}


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    """A matrix, a convolution in another memory order, a vector and a scalar."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(20, 9), (4, 3, 3, 3), (7,), ()]
    params = [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    params[1].data = params[1].data.to(memory_format=torch.channels_last)
    return params


def give_gradients(params: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    """Fresh random gradients, the same for the same step: collinear ones would hide what a resume loses."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale
        p.grad = g.to(torch.complex128 if p.is_complex() else torch.float64).to(p.device, p.dtype)


class Watch(TorchDispatchMode):
    """What the operations inside the context do: waits of the host for a device, and bytes alive at most."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += func is torch.ops.aten._local_scalar_dense.default
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._allocated(tensor, storage._cdata, storage.nbytes())
        return result

    def _allocated(self, tensor: Tensor, key: int, size: int) -> None:
        def free() -> None:
            self.bytes -= size
            self._known.discard(key)

        self._known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(tensor, free)
