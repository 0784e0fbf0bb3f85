"""How what has 16 bits is rounded: to nearest, with compensation, or stochastically.

The compensation of a bfloat16 θ is the lower half of a float32, an int16 c: θ's bits · 2¹⁶ + c are the
bits of the exact value. θ is that value rounded to nearest, halves away from zero, so c has a sign. A float16
has other exponents than a float32, so its compensation is a float16: what rounding lost.

The bits of stochastic rounding follow from the step, the parameter's place in its group, and the element's
place in memory, or its index where the momentum has 8 bits. No generator has a part in it. So all replicas of
a parameter are rounded alike, on whatever device they are, and a resumed run is the uninterrupted one.
A step draws `PERIOD` numbers, by a hash, and takes them again and again, each parameter from another one on:
on the CPU it would take longer to draw some for each element than to move it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sgd_sai.options import Group

#: Elements of a parameter, one after the other, that have bits of their own; even.
PERIOD = 1 << 14
# From one parameter of a group to the next; even, and far from a simple fraction of the period.
_STRIDE = 10126


class Noise(NamedTuple):
    """Stochastic rounding of a block.

    Attributes:
        number: the place of its parameter in the group.
        first: the place in that parameter of the block's first element.
    """

    number: int
    first: int = 0

    @property
    def place(self) -> int:
        """The place of the block's first element among the numbers of a step."""
        return (self.number * _STRIDE + self.first) % PERIOD

    def from_element(self, begin: int) -> Noise:
        """That of the block's elements from number `begin` on."""
        return Noise(self.number, self.first + begin)


#: How a block is rounded. None: to nearest. A tensor: to nearest, and what that lost is kept there, in θ's
#: shape and `compensation_dtype`. `Noise`: stochastically, to bfloat16.
Rounding = Tensor | Noise | None

#: From here on a float32 becomes an infinity as a bfloat16: half a unit above the largest one.
ROUNDED_TO_INFINITY = torch.finfo(torch.bfloat16).max + 2.0**119
_LARGEST = torch.finfo(torch.float32).max


def kind_of(rounding: Rounding) -> str:
    """The value of the option `rounding` that rounds so."""
    if rounding is None:
        return "nearest"
    return "stochastic" if isinstance(rounding, Noise) else "kahan"


def next_step(group: Group, compiling: bool, *, counts: bool) -> int | Tensor:
    """The number of this step, for the bits of stochastic rounding; kept only if it counts."""
    last = group.get("rounding_step", 0)  # a group may have been made of the defaults alone
    if group["capturable"] and group["params"] and not isinstance(last, Tensor):
        # A CUDA graph would keep an integer.
        last = group["rounding_step"] = torch.tensor(last, device=group["params"][0].device)
    if isinstance(last, Tensor):
        return last.add_(1) if counts else last + 1
    if counts:
        group["rounding_step"] = last + 1
    return torch.tensor(last + 1, device="cpu") if compiling else last + 1


def exactly(θ: Tensor, rounding: Rounding) -> Tensor:
    """θ in float32 at least, with what was lost when it was rounded last; θ itself where that is θ.

    Others may have changed θ since. Then a lower half may not fit: with it, a zero could be NaN and an
    infinity a number. Such a θ counts as it is. (So does an infinity to which a float32 was rounded.)
    """
    wide = θ.to(torch.promote_types(θ.dtype, torch.float32))
    if not isinstance(rounding, Tensor):
        return wide
    if θ.dtype != torch.bfloat16:
        return wide + rounding
    exact = (wide.view(torch.int32) + rounding).view(torch.float32)
    return torch.where(exact.abs() < ROUNDED_TO_INFINITY, exact, wide)


def round_to(
    θ: Tensor, exact: Tensor, rounding: Rounding, step: int | Tensor, drawn: Tensor | None = None
) -> None:
    """Write `exact` to θ, rounded.

    Args:
        θ, exact: of one shape; `exact` is float32 at least. With a compensation nothing may be left in it.
        rounding: see `Rounding`.
        step: the number of the step, of which `Noise` depends; an int64 tensor may be on θ's device.
        drawn: `random_bits` for the elements, if somebody has them already.
    """
    if isinstance(rounding, Noise):
        up_or_down(θ, exact, random_bits(exact, rounding, step) if drawn is None else drawn)
        return
    if rounding is not None and θ.dtype == torch.bfloat16:
        # An infinity must not have a lower half: it is NaN with one.
        bits = exact.clamp_(-_LARGEST, _LARGEST).view(torch.int32)
        rounding.copy_(bits)
        θ.copy_(bits.bitwise_or_(1).view(torch.float32))  # nothing is halfway now: halves go away from zero
        return
    if exact is not θ:
        θ.copy_(exact)
    if rounding is not None:
        # The Inductor of torch.compile takes what it has at hand in float32 for what it wrote in 16 bits, and
        # would find nothing lost.
        kept = nearest_float16(exact) if torch.compiler.is_compiling() else θ
        rounding.copy_(exact - kept)


def nearest_float16(exact: Tensor) -> Tensor:
    """A float32 tensor as float16 would have it, still in float32, by operations on 32 bits.

    Beyond the largest float16 it is finite, and of a NaN it may be a number.
    """
    bits = exact.view(torch.int32)
    half = 0xFFF + (bits >> 13 & 1)  # 13 of the 23 bits are dropped; a tie goes to the even one
    rounded = ((bits + half) & -0x2000).view(torch.float32)
    # Below 2⁻¹⁴ its steps are 2⁻²⁴.
    return torch.where(exact.abs() < 2**-14, (exact * 2**24).round() * 2**-24, rounded)


def in_16_bits(exact: Tensor, drawn: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 numbers as bfloat16 or float16 has them, still in float32, rounded by 16 random bits each.

    A NaN may become a number.
    """
    if dtype == torch.bfloat16:  # the upper half of a float32: add a random lower half, then drop it
        return (exact.view(torch.int32) + drawn).bitwise_and_(-0x10000).view(torch.float32)
    size = exact.abs()
    # Below 2⁻¹⁴ the steps of float16 are 2⁻²⁴, as float32 with 10 bits of fraction has them from there on.
    lifted = torch.where(size < 2**-14, 2**-14, 0.0)
    bits = (size + lifted).view(torch.int32) + (drawn >> 3)  # 13 of the 23 bits are dropped
    return (bits.bitwise_and_(-0x2000).view(torch.float32) - lifted).copysign_(exact)


def up_or_down(out: Tensor, exact: Tensor, drawn: Tensor) -> None:
    """Write `exact`, float32, to `out`, bfloat16, rounded by 16 random bits for each element."""
    rounded = in_16_bits(exact, drawn, torch.bfloat16)
    out.copy_(torch.where(exact.isnan(), exact, rounded))  # the sum could carry a NaN over to a zero


def uniform(like: Tensor, noise: Noise, step: int | Tensor) -> Tensor:
    """A number in (0, 1) for each element of a dense tensor, float32, from `random_bits` for the momentum."""
    return (bits_of_momentum(like, noise, step) + 0.5) * 2.0**-16


def bits_of_momentum(like: Tensor, noise: Noise, step: int | Tensor) -> Tensor:
    """As `random_bits`, for the momentum: of the hash that two elements share, each has the other half."""
    return _drawn(like, noise, step, of_momentum=True)


def random_bits(like: Tensor, noise: Noise, step: int | Tensor) -> Tensor:
    """16 random bits for each element of a dense tensor, as int32 in its shape and its order in memory.

    Numbers 2k and 2k + 1 of a step share a hash of 32 bits: its lower half, and its upper.
    """
    return _drawn(like, noise, step, of_momentum=False)


def _drawn(like: Tensor, noise: Noise, step: int | Tensor, *, of_momentum: bool) -> Tensor:
    count = step if isinstance(step, Tensor) else torch.full((), step, dtype=torch.int64, device=like.device)
    low, high = (part.to(like.device, torch.int32) for part in (count, count >> 32))
    key = _mixed(_mixed(high + _BEGIN) ^ low)
    first, odd = divmod(noise.place, 2)
    pair = torch.arange((odd + like.numel() + 1) // 2, dtype=torch.int32, device=like.device)
    both = _mixed((pair + first & PERIOD // 2 - 1) ^ key)
    halves = (both & 0xFFFF, both >> 16 & 0xFFFF)
    bits = torch.stack(halves[::-1] if of_momentum else halves, dim=1).view(-1)[odd : odd + like.numel()]
    return bits.as_strided(like.shape, like.stride(), storage_offset=odd)


_BEGIN = 0x1E3779B9  # any number: `_mixed` leaves 0 as it is
_FACTORS = 0x21F0AAAD, 0xD35A2D97 - (1 << 32)


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the int32, each bit of whose output depends on all bits of its input.

    The shifts and factors are from a list of such functions in C. Wellons' hash prospector (README, 2024).
    """
    x = x ^ (x >> 16 & 0xFFFF)  # a logical shift
    x = x * _FACTORS[0]
    x = x ^ (x >> 15 & 0x1FFFF)
    x = x * _FACTORS[1]
    return x ^ (x >> 15 & 0x1FFFF)
