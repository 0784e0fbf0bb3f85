"""How what has 16 bits is rounded: to nearest, with compensation, or stochastically.

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
#: shape and dtype, for the next step to add. `Noise`: stochastically, to bfloat16.
Rounding = Tensor | Noise | None


def kind_of(rounding: Rounding) -> str:
    """The value of the option `rounding` that rounds so."""
    if rounding is None:
        return "nearest"
    return "stochastic" if isinstance(rounding, Noise) else "kahan"


def next_step(group: Group, compiling: bool, *, alone: bool) -> int | Tensor:
    """The number of this step, for the bits of stochastic rounding; a parameter alone does not count it."""
    last = group.get("rounding_step", 0)  # a group may have been made of the defaults alone
    # With lr = 0 nothing is rounded: torch.distributed.checkpoint takes such a step to create the state.
    alone = alone or (not isinstance(group["lr"], Tensor) and group["lr"] == 0)
    if group["capturable"] and group["params"] and not isinstance(last, Tensor):
        # A CUDA graph would keep an integer.
        last = group["rounding_step"] = torch.tensor(last, device=group["params"][0].device)
    if isinstance(last, Tensor):
        return last + 1 if alone else last.add_(1)
    if not alone:
        group["rounding_step"] = last + 1
    return torch.tensor(last + 1, device="cpu") if compiling else last + 1


def exactly(θ: Tensor, rounding: Rounding) -> Tensor:
    """θ in float32 at least, with what was lost when it was rounded last; θ itself where that is θ."""
    wide = θ.to(torch.promote_types(θ.dtype, torch.float32))
    return wide + rounding if isinstance(rounding, Tensor) else wide


def round_to(
    θ: Tensor, exact: Tensor, rounding: Rounding, step: int | Tensor, drawn: Tensor | None = None
) -> None:
    """Write `exact` to θ, rounded.

    Args:
        θ, exact: of one shape; `exact` is float32 at least.
        rounding: see `Rounding`.
        step: the number of the step, of which `Noise` depends; an int64 tensor may be on θ's device.
        drawn: `random_bits` for the elements, if somebody has them already.
    """
    if isinstance(rounding, Noise):
        up_or_down(θ, exact, random_bits(exact, rounding, step) if drawn is None else drawn)
        return
    if exact is not θ:
        θ.copy_(exact)
    if rounding is not None:
        # The Inductor of torch.compile takes what it has at hand in float32 for what it wrote in 16 bits, and
        # would find nothing lost.
        kept = nearest_in_16_bits(exact, θ.dtype) if torch.compiler.is_compiling() else θ
        rounding.copy_(exact - kept)


def nearest_in_16_bits(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 tensor as float16 or bfloat16 would have it, still in float32, by operations on 32 bits.

    Beyond the largest float16 it is finite, and of a NaN it may be a number.
    """
    dropped = 13 if dtype == torch.float16 else 16  # of the 23 bits of the fraction
    bits = exact.view(torch.int32)
    half = (1 << dropped - 1) - 1 + (bits >> dropped & 1)  # a tie goes to the even one
    rounded = ((bits + half) & -(1 << dropped)).view(torch.float32)
    if dtype == torch.float16:  # below 2⁻¹⁴ its steps are 2⁻²⁴
        rounded = torch.where(exact.abs() < 2**-14, (exact * 2**24).round() * 2**-24, rounded)
    return rounded


def up_or_down(out: Tensor, exact: Tensor, drawn: Tensor) -> None:
    """Write `exact`, float32, to `out`, bfloat16, rounded by 16 random bits for each element."""
    # A bfloat16 is the upper half of a float32: add a random lower half, then drop the lower half.
    rounded = (drawn + exact.view(torch.int32)).bitwise_and_(-0x10000).view(torch.float32)
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
