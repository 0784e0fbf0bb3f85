"""Scales measured before a model is taken apart: DeepSpeed's ZeRO leaves the optimizer flat pieces of many
parameters, in which no block is left to measure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sgd_sai import gsnr
from sgd_sai.distributed.layout import part_of
from sgd_sai.gsnr import check_dense
from sgd_sai.messages import listed, warn


def measure_scales(
    model: nn.Module,
    loss: Tensor | Callable[[], Tensor],
    *,
    eps: float = 1e-8,
    unbiased: bool = False,
) -> dict[str, float]:
    """The raw G_snr of each trainable parameter, by its name, as ``SGDSaI(…, scale=…)`` takes them.

    Plain floats: they can be saved as JSON. Every rank must use the same ones: measure them on the same
    batch, or on one rank and broadcast them. Neither the parameters nor their ``.grad`` change.

    Args:
        model: not yet wrapped: its parameters are whole, or DTensors.
        loss: of one representative batch, a tensor of one element; or a function that computes it.
        eps, unbiased: as `SGDSaI`.

    A parameter whose gradient is missing, zero or not finite gets √d, and a warning names it.

    Raises:
        ValueError: no parameter is trainable, the loss is not one element that depends on one, or a gradient
            is sparse.

    Example:
        >>> scales = measure_scales(model, lambda: loss_fn(model(x), y))
        >>> optimizer = SGDSaI(model.named_parameters(), scale=scales)
    """
    named = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not named:
        raise ValueError("model: has no trainable parameter; allowed: at least one")
    with torch.enable_grad():
        value = loss if isinstance(loss, Tensor) else loss()
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"loss: given {given}; allowed: one element, computed from the parameters with autograd"
        )
    grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), grads, strict=True)]
    check_dense((f"parameter {name!r}", gradient) for name, gradient in zip(named, found, strict=True))
    parts = [
        [part_of(gradient, name=f"parameter {name!r}")] for name, gradient in zip(named, found, strict=True)
    ]
    moments = dict(zip(named, gsnr.measure(parts), strict=True))
    guessed = [name for name, of_block in moments.items() if not of_block.measurable]
    if guessed:
        warn(
            f"measure_scales: {len(guessed)} parameter(s) have no finite, non-zero gradient and get √d: "
            f"{listed(guessed)}"
        )
    return {
        name: gsnr.g_snr(of, eps=eps, unbiased=unbiased) if of.measurable else gsnr.sqrt_d(of)
        for name, of in moments.items()
    }
