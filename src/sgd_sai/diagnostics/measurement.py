"""One gradient of a model, block by block: G_snr, and the first updates of SGD-SaI and AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler, OptState

from sgd_sai import gsnr
from sgd_sai.distributed.layout import part_of
from sgd_sai.gsnr import UNLATCHED, Moments, Normalize, check_dense, divisor
from sgd_sai.messages import warn

#: A block whose G_snr is so many times the second largest makes all other scales that much smaller.
DOMINANT = 2.0

#: A global ‖g‖₂ from here on looks scaled. Those of the lab's tasks at the start lie between 0.02 and 11, and
#: are 1.4e3 to 7e5 with the 65,536 that a GradScaler begins with.
LOOKS_SCALED = 1e3


@dataclass(frozen=True)
class BlockMeasurement:
    """One block, that is, a parameter, at one gradient.

    Attributes:
        name, shape: of the parameter.
        moments: n, Σg, Σg² of the gradient; all 0 but n where there is none.
        gsnr: the raw G_snr, or `UNLATCHED`.
        adam_rms: RMS of g/(|g| + ε), AdamW's first update with lr 1 and without decay.
    """

    name: str
    shape: tuple[int, ...]
    moments: Moments
    gsnr: float
    adam_rms: float

    @property
    def latched(self) -> bool:
        """True if the gradient is finite and not all zeros."""
        return self.gsnr != UNLATCHED

    @property
    def sigma(self) -> float:
        """σ = √G_var, with 1/d."""
        return self.moments.deviation()

    @property
    def rms(self) -> float:
        """RMS of the gradient."""
        return self.moments.norm / math.sqrt(self.moments.n) if self.moments.n else 0.0

    @property
    def degenerate(self) -> bool:
        """True if all gradients are (nearly) equal, so that the floor of `gsnr.g_snr` sets G_snr."""
        return self.latched and self.sigma <= self.moments.norm / self.moments.n


@dataclass(frozen=True)
class Measurement:
    """The blocks of a model at one gradient, in the order of its parameters; `eps` as of `SGDSaI`."""

    blocks: list[BlockMeasurement]
    eps: float

    @cached_property
    def latched(self) -> list[BlockMeasurement]:
        """The blocks that have a G_snr."""
        return [block for block in self.blocks if block.latched]

    @cached_property
    def normalizers(self) -> dict[str, float]:
        """gsnr_max and gsnr_rms, which `SGDSaI` records at the first latch."""
        raws = [block.gsnr for block in self.latched]
        moments = [block.moments for block in self.latched]
        return {"gsnr_max": max(raws), "gsnr_rms": gsnr.rms_normalizer(raws, moments)}

    def adam_lr_ratio(self, normalize: Normalize = True) -> float:
        """η/η_AdamW for which the first updates of all latched blocks together have the same RMS."""
        ours = math.hypot(*(block.gsnr * block.moments.norm for block in self.latched))
        adams = math.hypot(*(block.adam_rms * math.sqrt(block.moments.n) for block in self.latched))
        return adams / ours * divisor(normalize, self.normalizers)

    def block_lr_ratio(self, block: BlockMeasurement, normalize: Normalize = True) -> float:
        """η/η_AdamW for which the first updates of this block alone have the same RMS."""
        return block.adam_rms / (block.gsnr * block.rms) * divisor(normalize, self.normalizers)

    @cached_property
    def dominant(self) -> BlockMeasurement | None:
        """The block whose G_snr is more than `DOMINANT` times that of any other, if there is one."""
        first, *others = sorted(self.latched, key=lambda block: -block.gsnr)
        return first if others and first.gsnr > DOMINANT * others[0].gsnr else None

    def flags(self, block: BlockMeasurement) -> list[str]:
        """Return the peculiarities of a block, in a word or two each; empty for most blocks."""
        flags = []
        if not block.latched:
            flags.append(f"unlatched ({'zero gradient' if block.moments.finite else 'NaN or Inf'})")
        if block.degenerate:
            flags.append("σ = 0" if block.sigma == 0.0 else "σ ≈ 0")
        if block.latched and block.sigma < self.eps and not block.degenerate:
            flags.append("σ < ε")  # G_snr is small because ε is in it: as of keys' biases, which do nothing
        if block is self.dominant:
            flags.append("dominates the max")
        return flags


def measure_blocks(
    model: nn.Module | Iterable[tuple[str, nn.Parameter]],
    *,
    eps: float = 1e-8,
    unbiased: bool = False,
    adam_eps: float = 1e-8,
    scaler: GradScaler | None = None,
) -> Measurement:
    """Measure the gradients that are in `.grad`, after a backward pass.

    G_snr is nearly the same if a `GradScaler` has scaled the loss. gsnr_rms and σ are larger by the scale,
    and what follows from them is wrong by it. So unscale before, or give the scaler.

    Args:
        model: a module, or its (name, parameter) pairs; parameters that require no gradient are left out.
        eps, unbiased: as of `SGDSaI`.
        adam_eps: ε of AdamW.
        scaler: the `torch.amp.GradScaler` that scaled the loss, if `unscale_` was not called since; the
            gradients are measured as divided by its scale, and stay as they are. One with enabled=False says
            that gradients are not scaled, however large.

    Raises:
        ValueError: no parameter has a finite, non-zero gradient, or one is sparse; `scaler` is no
            `GradScaler`, or has scaled nothing yet.
    """
    scale = _scale_of(scaler)
    pairs = model.named_parameters() if isinstance(model, nn.Module) else model
    named = [(name, param) for name, param in pairs if param.requires_grad]
    given = [(f"parameter {name!r}", param.grad) for name, param in named]
    check_dense(given)
    moments = gsnr.measure([[] if grad is None else [part_of(grad, name=name)] for name, grad in given])
    blocks = []
    for (name, param), of_block in zip(named, moments, strict=True):
        of_block = of_block._replace(unit=of_block.unit / scale).in_unit(of_block.unit)
        if param.grad is None:
            of_block = Moments(gsnr.as_real(param).numel(), 0.0, 0.0, 0)
        raw = gsnr.g_snr(of_block, eps=eps, unbiased=unbiased) if of_block.measurable else UNLATCHED
        adam_rms = 0.0 if raw == UNLATCHED or param.grad is None else _adam_rms(param.grad, adam_eps, scale)
        blocks.append(BlockMeasurement(name, tuple(param.shape), of_block, raw, adam_rms))
    if not any(block.latched for block in blocks):
        raise ValueError(
            f"gradients: none of the model's {len(blocks)} trainable parameters has a finite, non-zero one"
        )
    measured = Measurement(blocks, eps)
    norm = math.hypot(*(block.moments.norm for block in measured.latched))
    if scaler is None and norm >= LOOKS_SCALED:
        warn(
            f"gradients: their norm is {norm:.3g}, as after a loss that a GradScaler has scaled. Then lr and "
            "normalizers are wrong by its scale: call scaler.unscale_(optimizer) before, or give "
            "scaler=scaler (a GradScaler with enabled=False if they are not scaled)"
        )
    return measured


def _scale_of(scaler: GradScaler | None) -> float:
    """How many times too large the gradients are."""
    if scaler is None:
        return 1.0
    if not isinstance(scaler, GradScaler):
        raise ValueError(f"scaler: given {scaler!r}; allowed: a torch.amp.GradScaler or None")
    if not scaler.is_enabled():
        return 1.0
    # Torch shows neither of these two in public; without them the numbers would be wrong by the scale.
    if getattr(scaler, "_scale", scaler) is None:
        raise ValueError(
            "scaler: given one that has scaled no loss yet; allowed: that of scale(loss).backward()"
        )
    stages = [state["stage"] for state in getattr(scaler, "_per_optimizer_states", {}).values()]
    if any(stage is not OptState.READY for stage in stages):
        warn(
            "scaler: it has already unscaled the gradients of an optimizer since its last update(). If they "
            "are measured here, they are divided twice: leave scaler out, or measure before"
        )
    return scaler.get_scale()


def _adam_rms(grad: Tensor, eps: float, scale: float) -> float:
    g = gsnr.as_real(grad.detach()).to(torch.float64) / scale
    return float((g / (g.abs() + eps)).square().mean().sqrt())
