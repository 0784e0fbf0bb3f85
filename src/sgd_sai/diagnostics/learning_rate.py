"""Learning rates: between the forms of `SGDSaI`'s, and from AdamW's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from torch.amp.grad_scaler import GradScaler

from sgd_sai.diagnostics.measurement import measure_blocks
from sgd_sai.gsnr import UNLATCHED, Normalize, divisor
from sgd_sai.options import OPTIONS


def convert_lr(
    lr: float,
    weight_decay: float = 0.0,
    *,
    given: Normalize,
    wanted: Normalize,
    normalizers: Mapping[str, float],
) -> tuple[float, float]:
    """Convert (η, λ) between the forms of `normalize`; the trajectory is the same.

    η multiplies G_snr/N, where N is max G_snr (True), 1 (False), `gsnr_rms` ("rms") or the number that is
    given, and decay uses η λ. So

        η_wanted = η_given · N_wanted / N_given        λ_wanted = λ_given · N_given / N_wanted

    and in particular η_paper = η_raw · max G, λ_paper = λ_raw / max G. It is exact but for blocks that latch
    after the first one with a larger G_snr than its maximum: `normalize=True` caps them at 1.

    Args:
        lr, weight_decay: η > 0 and λ ≥ 0.
        given, wanted: values of `SGDSaI`'s option `normalize`.
        normalizers: of an `SGDSaI` that has taken a step, whichever its form: "gsnr_max" and "gsnr_rms"; one
            that neither form needs may be missing.

    Returns:
        (η, λ) in the form `wanted`.

    Raises:
        ValueError: an argument is not allowed, a normaliser is missing, or no block is latched.

    Example:
        >>> convert_lr(1e-3, 0.1, given=False, wanted=True, normalizers={"gsnr_max": 768.0})
        (0.768, 0.00013020833333333333)
    """
    for name, form in (("given", given), ("wanted", wanted)):
        if not OPTIONS["normalize"].allows(form):
            raise ValueError(f"{name}: given {form!r}; allowed: {OPTIONS['normalize'].allowed}")
    for name, value, least in (("lr", lr, "> 0"), ("weight_decay", weight_decay, "≥ 0")):
        if not (0.0 <= value < math.inf) or (name == "lr" and value == 0.0):
            raise ValueError(f"{name}: given {value!r}; allowed: a finite number {least}")
    try:
        ratio = divisor(wanted, normalizers) / divisor(given, normalizers)
    except KeyError as error:
        raise ValueError(f"normalizers: lacks {error.args[0]!r}, which the conversion needs") from None
    if not 0.0 < ratio < math.inf:
        raise ValueError(
            f"normalizers: given {divisor(wanted, normalizers)} and {divisor(given, normalizers)}; allowed: "
            f"positive numbers ({UNLATCHED} says that no block is latched: take a step first)"
        )
    return lr * ratio, weight_decay / ratio


@dataclass(frozen=True)
class Transfer:
    """AdamW's learning rate as SGD-SaI's.

    Attributes:
        lr: η with which the first updates of all blocks together have the RMS of AdamW's.
        by_block: parameter name → η with which this block's own first update has it. The further these lie
            apart, the less one η can stand for AdamW's.
        normalizers: gsnr_max and gsnr_rms at that gradient, for `convert_lr`.
    """

    lr: float
    by_block: dict[str, float]
    normalizers: dict[str, float]


def transfer_lr(
    model: nn.Module | Iterable[tuple[str, nn.Parameter]],
    adamw_lr: float,
    *,
    normalize: Normalize = True,
    adam_eps: float = 1e-8,
    scaler: GradScaler | None = None,
) -> Transfer:
    """Find the η of SGD-SaI whose first update is as large as AdamW's with `adamw_lr`, decay apart.

    Call it after one backward pass, with the gradient that the first step will see (clipped, if you clip).
    AdamW's first update is η g/(|g| + ε), of RMS η wherever |g| ≫ ε; SGD-SaI's is η G/N g. So η is in
    inverse proportion to the gradient: if a `GradScaler` has scaled the loss, unscale before, or give it.

    Args:
        model: a module whose parameters hold their gradients, or its (name, parameter) pairs.
        adamw_lr: AdamW's η.
        normalize: the form in which SGD-SaI's η is wanted. With "rms" it is `adamw_lr` but for ε and blocks
            that are not latched.
        adam_eps: ε of AdamW.
        scaler: the `torch.amp.GradScaler` whose scale is still in the gradients, as of `measure_blocks`.

    Raises:
        ValueError: no parameter has a finite, non-zero gradient; `scaler` is no `GradScaler`, or has scaled
            nothing yet.

    Example:
        >>> loss_fn(model(x), y).backward()
        >>> optimizer = SGDSaI(model.parameters(), lr=transfer_lr(model, 6e-4).lr)
    """
    measured = measure_blocks(model, adam_eps=adam_eps, scaler=scaler)
    return Transfer(
        lr=adamw_lr * measured.adam_lr_ratio(normalize),
        by_block={
            block.name: adamw_lr * measured.block_lr_ratio(block, normalize) for block in measured.latched
        },
        normalizers=measured.normalizers,
    )
