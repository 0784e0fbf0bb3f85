"""g-SNR: from the gradient of a block to its learning-rate scale.

Pure functions. The optimizer, the tools and the tests call the same ones.

    moments      n, Σg, Σg²                    of a block's gradient, in float64
    G_snr        ‖g‖₂ / (√G_var + ε)           (Algorithm 1 of arXiv 2412.11768)
    scale G̃ᵢ     G_snrᵢ / max_k G_snr_k        in (0, 1], frozen for the run

With ε = 0,  G_snr = √d · √(1 + ḡ²/G_var):  where a block's mean gradient is small against its
deviation, as in weight matrices, G_snr is √d to three digits. `sqrt_d` is that limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from sgd_sai.distributed.collectives import sum_over_ranks
from sgd_sai.distributed.layout import Part, part_of
from sgd_sai.kernels import moments as kernels
from sgd_sai.kernels.tables import available

#: The g-SNR of a block that has not yet met a finite, non-zero gradient. A float like any other, so that
#: every checkpoint format keeps it; negative, so that it can be taken neither for a G_snr nor for a zero.
UNLATCHED = -1.0

#: The largest scale: steps multiply in float32.
LARGEST = torch.finfo(torch.float32).max

# Gradients are widened to float64 piece by piece: 2 MiB at a time instead of a copy of the tensor.
_PIECE = 1 << 18
# Up to here a tensor on the CPU costs less than the calls that would measure it alone.
_SMALL = 1 << 11
# Sums of squares from which on float64 has lost digits, and the unit in which it has not.
_UNDERFLOW, _UNIT = 2.0**-960, 2.0**600


class Moments(NamedTuple):
    """The moments (n, Σg, Σg²) of a block's gradient; complex elements count as two reals.

    `nonzero` is how many elements are not 0: those that AdamW's first update moves. `unit` is 1, unless
    squares of a float64 gradient are beyond float64: then the sums are those of g / unit, a power of two.
    """

    n: int
    total: float
    total_sq: float
    nonzero: int
    unit: float = 1.0

    @property
    def norm(self) -> float:
        """‖g‖₂."""
        return self.unit * math.sqrt(self.total_sq)

    @property
    def mean(self) -> float:
        """ḡ, 0 for an empty block."""
        return self.unit * (self.total / self.n) if self.n else 0.0

    def variance(self, *, unbiased: bool = False) -> float:
        """(1/d) Σ (gⱼ − ḡ)², or with 1/(d−1); 0 where that is undefined.

        Float64 sums lose about 1e-16 · ḡ²/G_var to cancellation, far below the floor that `g_snr` sets.
        """
        freedom = self.n - 1 if unbiased else self.n
        if freedom <= 0:
            return 0.0
        in_units = max(self.total_sq - self.total * (self.total / self.n), 0.0) / freedom
        return self.unit * self.unit * in_units

    def deviation(self, *, unbiased: bool = False) -> float:
        """The root of the variance, also where that is beyond float64."""
        return self.unit * math.sqrt(self._replace(unit=1.0).variance(unbiased=unbiased))

    def in_unit(self, unit: float) -> Moments:
        """The same moments in another unit."""
        ratio = self.unit / unit
        return Moments(self.n, self.total * ratio, self.total_sq * ratio * ratio, self.nonzero, unit)

    @property
    def measurable(self) -> bool:
        """True if the gradient is finite and not all zeros: then, and only then, a block latches."""
        return 0.0 < self.total_sq < math.inf

    @property
    def finite(self) -> bool:
        """False if the gradient holds a NaN or an infinity."""
        return math.isfinite(self.total_sq)


def combined(parts: Sequence[Moments]) -> Moments:
    """The moments of a block from those of its members."""
    whole = _summed(parts, max((part.unit for part in parts), default=1.0))
    if not whole.finite and all(part.finite for part in parts):  # each alone is within float64
        return _summed(parts, _UNIT)
    return whole


def _summed(parts: Sequence[Moments], unit: float) -> Moments:
    parts = [part.in_unit(unit) for part in parts]
    n, total, total_sq, nonzero, _ = map(sum, zip(Moments(0, 0.0, 0.0, 0), *parts, strict=True))
    return Moments(int(n), total, total_sq, int(nonzero), unit)


#: The form of lr: relative to the largest G_snr, to AdamW's lr, (False) raw, or to a number; see `SGDSaI`.
Normalize = bool | float | Literal["rms"]

#: A scale rule: the moments of a block in, a positive raw scale out.
Rule = Callable[[Moments], float]


def g_snr(moments: Moments, *, eps: float = 1e-8, unbiased: bool = False) -> float:
    """G_snr = ‖g‖₂ / (σ + ε), ε outside the root (Algorithm 1).

    σ is floored at ‖g‖₂/d, so G_snr ≤ d: a scalar, or a block whose gradients are all equal, has σ = 0 and
    would otherwise get ‖g‖₂/ε. The floor is ours; it is inactive unless |ḡ| exceeds about √d · σ.
    """
    here = moments._replace(unit=1.0)
    floor = here.norm / here.n if here.n else 0.0
    return here.norm / (max(here.deviation(unbiased=unbiased), floor) + eps / moments.unit)


def sqrt_d(moments: Moments) -> float:
    """√d, the value that G_snr takes where ḡ² ≪ G_var. It depends on the block's size alone."""
    return math.sqrt(moments.n)


def scale(gsnr: float, gsnr_max: float) -> float:
    """G̃ = G_snr / max G_snr, capped at 1 for blocks that latch after the maximum was recorded."""
    return min(gsnr / gsnr_max, 1.0)


def rms_normalizer(gsnrs: Sequence[float], moments: Sequence[Moments]) -> float:
    """The N for which the first update η Gᵢ/N gᵢ of all blocks has the RMS of AdamW's at the same lr η.

    AdamW's, decay apart and with ε = 0, is η sign(g). So N² = Σᵢ Gᵢ² ‖gᵢ‖² / (elements with g ≠ 0).
    """
    norm, nonzero = rms_parts(gsnrs, moments)
    return norm / math.sqrt(nonzero)


def rms_parts(gsnrs: Sequence[float], moments: Sequence[Moments]) -> tuple[float, int]:
    """The root of the numerator of N² above, and its denominator: each rank of many has its own."""
    norms = [raw * of_block.norm for raw, of_block in zip(gsnrs, moments, strict=True)]
    return math.hypot(*norms), sum(of_block.nonzero for of_block in moments)


def divisor(normalize: Normalize, normalizers: Mapping[str, float]) -> float:
    """The divisor of G_snr in a form of lr; `normalizers` has gsnr_max and gsnr_rms."""
    key = normalizer_key(normalize)
    return normalizers[key] if key else float(normalize or 1.0)


def normalizer_key(normalize: Normalize) -> str | None:
    """Which normaliser a form of lr divides by; None for a form that has its own number, or divides by 1."""
    if isinstance(normalize, bool):
        return "gsnr_max" if normalize else None
    return "gsnr_rms" if isinstance(normalize, str) else None


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as a view of pairs of reals, shape (*, 2); a real one as it is.

    A gradient may be conjugated lazily; it is copied.
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def has_data(tensor: Tensor) -> bool:
    """False for a tensor of the meta device or of FakeTensorMode, with which steps are planned."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def check_dense(named: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise for the first sparse gradient, of which no g-SNR is defined, by its parameter's name."""
    for name, grad in named:
        if grad is not None and grad.layout != torch.strided:
            raise ValueError(
                f"{name}: its gradient is sparse ({grad.layout}); allowed: dense, which nn.Embedding gives "
                "with sparse=False"
            )


@torch.no_grad()
def measure(blocks: Sequence[Sequence[Tensor | Part]]) -> list[Moments]:
    """Moments of the gradients of each block, where a block is one tensor or several.

    Tensors may differ in dtype and device. Sums are taken in float64 where the device has it; the host
    waits for each device once, however many blocks there are. The sums of a tensor do not depend on the
    others. A DTensor is measured as a whole, by one all-reduce for each group of ranks, in which every rank
    of the group must take part, with the same blocks.

    Raises:
        ValueError: the ranks of a group measure other blocks, or in another order; on each of these ranks.
    """
    return measure_with_momenta(blocks, [[None] * len(block) for block in blocks])[0]


@torch.no_grad()
def measure_with_momenta(
    blocks: Sequence[Sequence[Tensor | Part]], momenta: Sequence[Sequence[Tensor | None]]
) -> tuple[list[Moments], list[list[bool]]]:
    """What `measure` returns; and of each momentum, if it has an element that is not 0, on any rank.

    Args:
        blocks: see `measure`.
        momenta: for each tensor of a block a real one that is laid out alike, its part on this rank. For None
            the answer is that of the other ranks; they need not have None for the same ones.
    """
    parts = [[part_of(gradient) for gradient in block] for block in blocks]
    every = [part for block in parts for part in block]
    moments, held = _moments_of_parts(every, [m for block in momenta for m in block])
    for unit in (1 / _UNIT, _UNIT):  # ranks have the same sums, and so the same places
        places = [i for i, part in enumerate(every) if _fits_better_in(unit, moments[i], part)]
        if places:
            again, _ = _moments_of_parts([every[i].over(unit) for i in places], [None] * len(places))
            for i, of_part in zip(places, again, strict=True):
                moments[i] = of_part._replace(unit=unit) if of_part.measurable else moments[i]
    of_parts, helds = iter(moments), iter(held)
    return (
        [combined([next(of_parts) for _ in block]) for block in parts],
        [[next(helds) for _ in block] for block in parts],
    )


def _moments_of_parts(
    parts: Sequence[Part], momenta: Sequence[Tensor | None]
) -> tuple[list[Moments], list[bool]]:
    """The moments of each part, as far as its squares are within float64; and if the momentum holds any."""
    rows = sum_over_ranks(_sums_of_parts(parts, momenta), parts).to("cpu", torch.float64).tolist()
    moments = [
        Moments(part.n, total, total_sq, int(nonzero))
        for part, (total, total_sq, nonzero, _) in zip(parts, rows, strict=True)
    ]
    return moments, [held != 0.0 for *_, held in rows]


def _fits_better_in(unit: float, of_part: Moments, part: Part) -> bool:
    """True if the sum of a part's squares is beyond float64, but not in this unit."""
    if part.local.dtype not in (torch.float64, torch.complex128):
        return False
    return of_part.total_sq == math.inf if unit > 1 else of_part.total_sq < _UNDERFLOW


def hold_something(tensors: Sequence[Tensor | Part | None]) -> list[bool]:
    """True for each tensor with an element that is not 0, False for None; the host waits once.

    Of a DTensor all ranks learn the same, and all must take part.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    moments = iter(measure([[tensor] for tensor in given]) if given else [])
    return [tensor is not None and next(moments).total_sq != 0.0 for tensor in tensors]


def _sums_of_parts(parts: Sequence[Part], momenta: Sequence[Tensor | None]) -> Tensor:
    """(Σg, Σg², elements of g ≠ 0, elements of m ≠ 0) on this rank, of shape (parts, 4).

    They are where the gradients are, so that ranks sum them there; on the CPU if that is several devices.
    """
    by_device: dict[torch.device, list[int]] = {}
    for place, part in enumerate(parts):
        by_device.setdefault(part.local.device, []).append(place)
    several = len(by_device) != 1
    rows = torch.zeros(len(parts), 4, dtype=torch.float64, device="cpu")
    for places in by_device.values():
        sums = _sums_of_all([as_real(parts[i].local) for i in places])
        sums = torch.nn.functional.pad(sums, (0, 1))
        held = [(row, m) for row, i in enumerate(places) if (m := momenta[i]) is not None]
        if held:
            sums[[row for row, _ in held], 3] = _sums_of_all([m for _, m in held])[:, 2]
        if not several:
            return sums
        rows[places] = sums.to("cpu", torch.float64)
    return rows


def _sums_of_all(gradients: Sequence[Tensor]) -> Tensor:
    """(Σg, Σg², elements ≠ 0) of each gradient, all on one device, as a tensor of shape (gradients, 3)."""
    if available(gradients[0].device):
        return kernels.sums(gradients)
    small: dict[tuple[int, torch.dtype], list[int]] = {}
    others: list[int] = []
    for place, gradient in enumerate(gradients):
        size = gradient.numel()
        if size <= _SMALL and gradient.is_cpu:
            small.setdefault((size, gradient.dtype), []).append(place)
        else:
            others.append(place)
    if not small:
        return torch.stack([_sums(gradient) for gradient in gradients])
    rows = torch.empty(len(gradients), 3, dtype=torch.float64, device="cpu")
    for place in others:
        rows[place] = _sums(gradients[place])
    for places in small.values():
        # Small tensors of one size, a row each: the sums of a row are the same in any company.
        x = torch.stack([gradients[place].reshape(-1) for place in places]).to(rows.dtype)
        rows[places] = torch.stack((x.sum(1), (x * x).sum(1), x.count_nonzero(1)), dim=1)
    return rows


def _sums(gradient: Tensor) -> Tensor:
    """The sums of one tensor as a tensor of shape (3,) on the gradient's device."""
    wide = torch.float32 if gradient.device.type == "mps" else torch.float64  # Metal has no float64
    sums = torch.zeros(3, dtype=wide, device=gradient.device)
    for piece in torch.split(gradient.reshape(-1), _PIECE):
        x = piece.to(wide)
        sums += torch.stack((x.sum(), x.dot(x), piece.bool().count_nonzero()))
    return sums
