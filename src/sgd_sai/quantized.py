"""Momentum in 8 bits.

It is quantized block-wise: every 256 elements share a float32 a = max |m|. The blocks follow the index of an
element, row after row, not its place in memory: many checkpoint formats drop strides. The code of an element
is q = round(127 · √(|m|/a)), with the sign of m: a square law, whose steps shrink towards zero as the momenta
in a block do. Measured on an EMA of noisy gradients whose sizes spread over a factor of fifty
(tests/test_quantized.py), it is 1.8 % off, a linear code 4.2 %.

Where 256 divides the last dim, no block crosses a row. Then the scales have the shape of the codes but for
the last dim, and both can be cut over ranks alike, along any other dim: each block stays with its scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgd_sai.distributed.layout import cuts, gathered, is_spread, local, local_parts, spread_as
from sgd_sai.gsnr import as_real
from sgd_sai.rounding import Noise, Rounding, bits_of_momentum, in_16_bits, uniform

#: Elements that share a scale.
BLOCK = 256
#: Tensors of fewer elements keep their momentum in float32: they are few bytes, and often sensitive.
SMALLEST = 4096
#: In place of the scales of a momentum that could have 8 bits, but has more; in a saved state, of each scale.
#: torch.distributed.checkpoint casts what it loads to the dtype that it finds: this tells numbers from codes.
WIDE = -1.0

_LEVELS = 127
_FIRST = Noise(0)
# Below it, 127²/absmax would be beyond float32, and a momentum fades away.
_TINY = torch.finfo(torch.float32).tiny * _LEVELS**2


@dataclass(slots=True)
class Momentum16:
    """A momentum in bfloat16 or float16, rounded stochastically.

    To nearest it would stay where it is once a step changes it by less than half of its last bit.
    """

    stored: Tensor
    noise: Noise

    def read(self) -> Tensor:
        """The momentum as float32."""
        return self.stored.float()

    def write(self, momentum: Tensor, step: int | Tensor | None = None) -> None:
        """Store `momentum`. A NaN may become a number: its weight is NaN already, and stays so.

        Args:
            momentum: of the shape of what is stored.
            step: the number of the step, from which the bits follow; None rounds to nearest.
        """
        exact = momentum.float()
        if step is not None:
            drawn = bits_of_momentum(exact, self.noise, step)
            exact = in_16_bits(exact, drawn, self.stored.dtype)
        self.stored.copy_(exact)

    def write_in_place(self, m: Tensor, drawn: Tensor) -> None:
        """`write`, bit for bit, of a momentum that lies in memory as the stored one, and is lost afterwards.

        Args:
            m: float32.
            drawn: `bits_of_momentum` for its elements.
        """
        if self.stored.dtype is torch.bfloat16:  # its upper half, in half the time
            upper = m.view(torch.int32).add_(drawn).bitwise_right_shift_(16)
            self.stored.view(torch.int16).copy_(upper)
        else:
            self.stored.copy_(in_16_bits(m, drawn, self.stored.dtype))

    def piece(self, stored: Tensor, begin: int) -> Momentum16:
        """The elements `stored` of it, from number `begin` on."""
        return Momentum16(stored, self.noise.from_element(begin))


@dataclass(slots=True)
class Momentum8:
    """A momentum in 8 bits: `stored`, int8 of the block's shape; `absmax`, float32, one for 256 of them.

    Both are contiguous. The shape of `absmax` does not matter. A code q stands for absmax q |q| / 127². Codes
    are rounded stochastically, with the right mean: to nearest, an element whose gradient has become zero
    would keep its momentum for as long as another of its 256 has a large one.
    """

    stored: Tensor
    absmax: Tensor
    noise: Noise = _FIRST

    def read(self) -> Tensor:
        """The momentum as float32, contiguous, in the shape of the codes."""
        codes = _in_blocks(self.stored.float())
        return self._shaped(codes * codes.abs() * (self.flat_absmax / _LEVELS**2).unsqueeze(1))

    def write(self, momentum: Tensor, step: int | Tensor | None = None) -> None:
        """Encode `momentum`, of the codes' shape, in whatever order it lies in memory.

        What is not finite is stored as 0: its weight is none either, for ever, and its 255 neighbours stay.

        Args:
            momentum: of any floating dtype.
            step: the number of the step, from which the bits follow; None rounds to nearest.
        """
        m = _in_blocks(momentum.float().contiguous())
        m = torch.where(m.isfinite(), m, 0.0)
        torch.amax(m.abs(), dim=1, out=self.flat_absmax)
        square = m.abs() * self._inverse
        level = square.sqrt()
        if step is None:
            level.round_()
        else:
            level.floor_()
            drawn = uniform(m, self.noise, step)
            up = square - level * level - 2 * level * drawn > drawn
            level = (level + up).clamp_max_(_LEVELS)
        self.stored.copy_(self._shaped(level * m.sign()))

    def read_in_place(self, out: Tensor, spare: Tensor) -> Tensor:
        """`read`, bit for bit, of codes in one dimension; on the CPU in half the time.

        Args:
            out, spare: float32, as many as the codes in whole blocks. The momentum is written to the first.
        """
        count = self.stored.numel()
        # q |q| as integers of 16 bits: exact, and half the bytes of float32.
        square, size = spare.view(torch.int16).view(2, -1)[:, :count]
        square.copy_(self.stored)
        out[:count].copy_(square.mul_(torch.abs(square, out=size)))
        out[count:].zero_()
        _in_blocks(out).mul_((self.flat_absmax / _LEVELS**2).unsqueeze(1))
        return out[:count]

    def write_in_place(self, m: Tensor, level: Tensor, square: Tensor, drawn: Tensor) -> None:
        """`write`, bit for bit, of what `read_in_place` has filled; afterwards that is lost.

        Args:
            m: float32, as many as the codes in whole blocks.
            level, square: as m, of any values.
            drawn: `uniform` for these elements, as many as m.
        """
        rows = _in_blocks(torch.abs(m, out=square))
        torch.amax(rows, dim=1, out=self.flat_absmax)
        if not self.flat_absmax.isfinite().all():
            m.nan_to_num_(0.0, 0.0, 0.0)
            torch.amax(torch.abs(m, out=square).view_as(rows), dim=1, out=self.flat_absmax)
        rows.mul_(self._inverse)
        torch.sqrt(square, out=level).floor_()
        square.addcmul_(level, level, value=-1).addcmul_(level, drawn, value=-2)
        level.add_(torch.gt(square, drawn, out=square)).mul_(m.sign_())
        self.stored.copy_(level[: self.stored.numel()])

    @property
    def _inverse(self) -> Tensor:
        """127² over the scale of each block, as a column."""
        return (_LEVELS**2 / self.flat_absmax.clamp_min(_TINY)).unsqueeze(1)

    @property
    def flat_absmax(self) -> Tensor:
        """`absmax` as a view of one dim."""
        return self.absmax.view(-1)

    def _shaped(self, blocks: Tensor) -> Tensor:
        return blocks.view(-1)[: self.stored.numel()].view(self.stored.shape)

    def piece(self, stored: Tensor, begin: int) -> Momentum8:
        """The elements `stored` of it, from number `begin` on, a multiple of 256."""
        first = begin // BLOCK
        absmax = self.flat_absmax[first : first - (-stored.numel() // BLOCK)]
        return Momentum8(stored, absmax, self.noise.from_element(begin))

    def parts(self, n: int) -> Iterator[Momentum8]:
        """The n equal parts along dim 0, each of which has its own scales; to be read."""
        for codes, absmax in zip(local_parts(self.stored, n), local_parts(self.absmax, n), strict=True):
            yield Momentum8(codes, absmax)


#: The dtypes of a momentum that is rounded stochastically.
FEW_BITS = frozenset((torch.int8, torch.bfloat16, torch.float16, torch.complex32))

#: A momentum of fewer bits than the arithmetic has, of which an update must know how it is rounded.
FewBits = Momentum16 | Momentum8

#: The momentum of a block, as an update takes it; None where momentum is 0.
Momentum = Tensor | FewBits | None


def stored_in(momentum: Momentum) -> tuple[Tensor | None, Tensor | None]:
    """The tensors of a momentum: its elements, and its scales where it has 8 bits."""
    if isinstance(momentum, FewBits):
        return momentum.stored, momentum.absmax if isinstance(momentum, Momentum8) else None
    return momentum, None


def noise_of(momentum: Momentum, rounding: Rounding) -> Noise | None:
    """From what the bits of a block follow, for its parameter and its momentum; None if it takes none."""
    if isinstance(rounding, Noise):
        return rounding
    return momentum.noise if isinstance(momentum, FewBits) else None


def real_shape(param: Tensor) -> tuple[int, ...]:
    """The shape of a parameter as reals, and so that of its codes."""
    return (*param.shape, 2) if param.is_complex() else tuple(param.shape)


def is_large(param: Tensor) -> bool:
    """True if a parameter is large enough for a momentum in 8 bits; see `SMALLEST`."""
    return math.prod(real_shape(param)) >= SMALLEST


def fits_8_bits(param: Tensor) -> bool:
    """True if a parameter is large enough for a momentum in 8 bits, and no rank has a part of a block."""
    return is_large(param) and cut_between_blocks(real_shape(param), cuts(param))


def cut_between_blocks(shape: Sequence[int], cuts: Mapping[int, int]) -> bool:
    """True if no shard of a tensor ends within a block of 256.

    It depends on the number of ranks only where they cut the last dim of a matrix, as a row-parallel layer
    does. So a tensor of one dim counts as cut within blocks: else some numbers of ranks could not load what
    others have saved.

    Args:
        shape: of the whole, as reals.
        cuts: see `layout.cuts`.
    """
    last = len(shape) - 1
    return not cuts or (last > 0 and shape[last] % (BLOCK * cuts.get(last, 1)) == 0)


def absmax_shape(shape: Sequence[int], split: int) -> tuple[int, ...]:
    """The shape of the scales of codes: one dim where blocks cross rows. No two `split` parts share one."""
    if len(shape) > 1 and shape[-1] % BLOCK == 0:
        return (*shape[:-1], shape[-1] // BLOCK)
    return (split * -(-math.prod(shape) // split // BLOCK),)


def absmax_of(param: Tensor, split: int, value: float) -> Tensor:
    """Scales that are all `value`: cut as the parameter is; where that cuts blocks, whole on each rank."""
    shape = absmax_shape(real_shape(param), split)
    whole = not cut_between_blocks(real_shape(param), cuts(param))
    here = shape if whole else absmax_shape(as_real(local(param)).shape, split)
    absmax = torch.full(here, value, dtype=torch.float32, device=param.device)
    return spread_as(param, absmax, shape, whole=whole) if is_spread(param) else absmax


def absmax_in(state: Mapping[str, Any]) -> Tensor | None:
    """The scales in a parameter's state; None beside a momentum of more bits."""
    absmax: Tensor | float | None = state.get("momentum_absmax")
    return None if isinstance(absmax, float) else absmax


def cast_back(state: dict[str, Any]) -> None:
    """Give a momentum in 8 bits its dtypes again, if a tool has cast a whole state to another one.

    No floating dtype of 16 bits or more loses a code. What is not all integers, the largest 127, is no codes:
    somebody has put a momentum of more bits in their place.
    """
    if (absmax := absmax_in(state)) is None:
        return
    held = local(state["momentum_buffer"])
    if held.dtype != torch.int8:
        size = held.abs()
        if held.is_complex() or not ((size == _LEVELS).any() and (size <= _LEVELS).all()):
            return
        if not torch.equal(held, held.round()):
            return
    state.update(momentum_buffer=state["momentum_buffer"].to(torch.int8), momentum_absmax=absmax.float())


def create_momentum8(state: dict[str, Any], param: Tensor, split: int) -> None:
    """Add a momentum of zeros in 8 bits to a state; each of the `split` parts has scales of its own."""
    codes = torch.zeros(as_real(local(param)).shape, dtype=torch.int8, device=param.device)
    if is_spread(param):
        codes = spread_as(param, codes, real_shape(param))
    absmax = absmax_of(param, split, 0.0)
    state.update(momentum_buffer=codes, momentum_absmax=absmax)  # both or, if there is no memory, neither


def absmax_in_shape(absmax: Tensor, param: Tensor, split: int) -> Tensor:
    """Scales as `absmax_shape` has them, in float32: a tool may have cast the saved ones.

    Once they always had one dim. Of DTensors every rank must ask.
    """
    absmax = absmax.float()
    shape = absmax_shape(real_shape(param), split)
    flat = len(shape) > 1 and absmax.shape == (math.prod(shape),)
    return gathered(absmax).reshape(shape) if flat else absmax


def read_whole(codes: Tensor, absmax: Tensor, split: int, *, is_complex: bool) -> Tensor:
    """The momentum of a parameter in float32 from its codes, of whatever dtype; every rank must ask.

    Raises:
        ValueError: they are no codes.
    """
    whole = gathered(codes)
    momentum = Momentum8(whole.to(torch.int8).contiguous(), gathered(absmax).contiguous())
    if not torch.equal(momentum.stored.to(whole.dtype), whole.contiguous()):
        raise ValueError("holds 'momentum_absmax', but no momentum in 8 bits")
    read = torch.cat([part.read() for part in momentum.parts(split)])
    return torch.view_as_complex(read) if is_complex else read


def block_by_index(state: dict[str, Any], *, parts: int) -> None:
    """Encode a momentum anew whose blocks follow the order of memory, as they once did.

    Codes that are not contiguous are such. The new blocks have other scales: elements are rounded once more.
    """
    codes = state.get("momentum_buffer")
    if codes is None or codes.dtype != torch.int8 or codes.is_contiguous():
        return
    state["momentum_buffer"] = torch.empty_like(codes, memory_format=torch.contiguous_format)
    if parts > 1:  # whose blocks have always followed the index
        state["momentum_buffer"].copy_(codes)
        return
    dims = sorted(range(codes.dim()), key=codes.stride, reverse=True)  # from the slowest on in memory
    meant = torch.empty_like(state["momentum_buffer"], dtype=torch.float32)
    meant.permute(dims).copy_(Momentum8(codes.permute(dims).contiguous(), state["momentum_absmax"]).read())
    state["momentum_absmax"] = torch.empty_like(state["momentum_absmax"])
    Momentum8(state["momentum_buffer"], state["momentum_absmax"]).write(meant)


def _in_blocks(contiguous: Tensor) -> Tensor:
    """256 elements a row, the last row filled up with zeros; a view where it is full."""
    if contiguous.numel() % BLOCK == 0:
        return contiguous.view(-1, BLOCK)
    return torch.nn.functional.pad(contiguous.view(-1), (0, -contiguous.numel() % BLOCK)).view(-1, BLOCK)
