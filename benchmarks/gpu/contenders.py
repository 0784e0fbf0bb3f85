"""The optimizers whose steps are timed, and the bytes that a step must move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.gpu.shapes import Shapes
from sgd_sai import SGDSaI
from sgd_sai.peers.builders import flash
from sgd_sai.peers.imports import Need, flashoptim, from_package, package

LR = 1e-6  # steps are to move the parameters, but not away
_MOMENTA: dict[str, dict[str, Any]] = {
    "fp32 m": {},
    "bf16 m": {"state_dtype": torch.bfloat16},
    "8-bit m": {"state_dtype": "8bit"},
    "no m": {"momentum": 0.0},
}


@dataclass(frozen=True)
class Contender:
    """An optimizer to time.

    Attributes:
        name: what its rows say.
        build: makes it from parameters and `lr=`.
        needs: None, or says what is missing here.
        own: False for one whose failure is not ours.
    """

    name: str
    build: Callable[..., Optimizer]
    needs: Need | None = None
    own: bool = True

    def missing(self) -> str | None:
        """None if it can be built here; else why not."""
        why = None if self.needs is None else self.needs()
        return why and "not installed"


def sgd_sai(momentum: str, rounding: str) -> Contender:
    """SGD-SaI with a momentum of `_MOMENTA`."""
    options = {"weight_decay": 0.1, "rounding": rounding, **_MOMENTA[momentum]}
    return Contender(f"SGD-SaI {momentum} {rounding}", partial(SGDSaI, **options))


#: The two that matter most come first: 3 bytes a parameter, and 2.
BF16 = [
    sgd_sai(momentum, rounding)
    for rounding in ("stochastic", "nearest", "kahan")
    for momentum in ("8-bit m", "no m", "bf16 m", "fp32 m")
]
FP32 = [sgd_sai(momentum, "nearest") for momentum in ("fp32 m", "8-bit m", "no m", "bf16 m")]

ADAMW = Contender("torch AdamW fused", partial(torch.optim.AdamW, weight_decay=0.1, fused=True))
_SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1)
SGD = [
    Contender("torch SGD fused", partial(_SGD, fused=True)),
    Contender("torch SGD foreach", partial(_SGD, foreach=True)),
]


def _optimi(params: Sequence[Tensor], lr: float) -> Optimizer:
    options = {"momentum": 0.9, "dampening": True, "weight_decay": 0.1, "decouple_wd": True}
    on_gpu = params[0].is_cuda
    return from_package("optimi", "SGD")(params, lr=lr, **options, kahan_sum=False, triton=on_gpu)


def _torchao(params: Sequence[Tensor], lr: float) -> Optimizer:
    """With a compiled step on a GPU; on the CPU that would need a C++ compiler."""
    torch.compiler.set_stance("default" if params[0].is_cuda else "force_eager")
    return from_package("torchao.optim", "AdamW8bit")(params, lr=lr)


#: Of others. One that lacks its package, or breaks, is a row that says so.
OTHERS = [
    Contender("optimi SGD Triton", _optimi, package("optimi", "peers"), own=False),
    Contender("flashoptim FlashSGDW", flash("FlashSGDW", momentum=0.9), flashoptim, own=False),
    Contender("flashoptim FlashAdamW", flash("FlashAdamW"), flashoptim, own=False),
    Contender(
        "bitsandbytes AdamW8bit",
        from_package("bitsandbytes.optim", "AdamW8bit"),
        package("bitsandbytes", "8bit"),
        own=False,
    ),
    Contender("torchao AdamW8bit", _torchao, package("torchao", "8bit"), own=False),
]


def parameters(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random parameters with random gradients, made on the device in their own dtype."""
    generator = torch.Generator(device).manual_seed(0)

    def random(shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, 0.02, generator=generator)

    params: list[Tensor] = []
    for shape in shapes:
        params.append(nn.Parameter(random(shape)))
        params[-1].grad = random(shape)
    return params


def bytes_moved(optimizer: Optimizer, params: Sequence[Tensor]) -> int:
    """Of a step at least: parameters and state are read and written, gradients are read."""
    grads = [param.grad for param in params if param.grad is not None]
    state = [
        tensor
        for param in params
        for value in optimizer.state[param].values()
        for tensor in tensors_of(value)
        if tensor.numel() > 1
    ]
    return 2 * size(params) + size(grads) + 2 * size(state)


def tensors_of(value: object) -> list[Tensor]:
    """A tensor of a state; the tensors of which one is made, or those that an object of flashoptim holds."""
    if not isinstance(value, Tensor):
        return [held for held in getattr(value, "__dict__", {}).values() if isinstance(held, Tensor)]
    if type(value) is not nn.Parameter and hasattr(value, "__tensor_flatten__"):
        return [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    return [value]


def size(tensors: Sequence[Tensor]) -> int:
    """Bytes."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
