"""One step of Algorithm 1 as a Triton kernel: one pass over θ, g and m, whatever their bits.

Each program moves one chunk of one tensor. The arithmetic is that of `update.reference`, momentum of fewer
bits is that of `quantized`, and rounding is that of `rounding.round_to`.
"""

# Triton's language has no types for mypy, and none of its own but tl.constexpr.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl

from sgd_sai.quantized import BLOCK
from sgd_sai.rounding import PERIOD, ROUNDED_TO_INFINITY

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.int8: tl.int8,
    None: None,
}

_QUANTUM = tl.constexpr(BLOCK)  # elements that share a scale of a momentum in 8 bits
_SQUARE = tl.constexpr(127.0**2)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny * 127**2)
_HALF_EVEN = tl.constexpr(1.5 * 2**23)
_SIGN = tl.constexpr(-(2**31))  # the bit of a float32
_ONE = tl.constexpr(0x3F800000)  # the bits of 1.0
_PAIRS = tl.constexpr(PERIOD // 2)
_ROUNDED_TO_INFINITY = tl.constexpr(ROUNDED_TO_INFINITY)


@triton.jit
def step(
    chunks,
    sizes,
    addresses,
    scales,
    places,
    factors,
    lr,
    count,
    grad_scale,
    found_inf,
    θ_type: tl.constexpr,
    g_type: tl.constexpr,
    m_type: tl.constexpr,
    rounding: tl.constexpr,
    maximize: tl.constexpr,
    chunk_size: tl.constexpr,
):
    """Move the tensors of the tables by one step.

    Args:
        chunks: int32 (programs, 2), a tensor's number and the number of a chunk of it.
        sizes: int64 (tensors,), elements.
        addresses: int64 (tensors, 5), of θ, g, m, m's absmax and θ's compensation, in bytes.
        scales: float64 (tensors,), G̃.
        places: int64 (tensors,), `rounding.Noise.place` of the tensors; None if none takes random bits.
        factors: float64 (2,), μ and λ.
        lr: η, one element of any floating dtype.
        count: int64, one element, the number of the step, of which the noise depends.
        grad_scale: None, or one element that divides every gradient.
        found_inf: None, or one element; unless it is 0, nothing is written.
        θ_type, g_type, m_type: what lies at the addresses; m_type None: no momentum.
        rounding: "nearest", "stochastic" or "kahan".
        maximize: ascend.
        chunk_size: elements of a chunk, a power of two and a multiple of 256.
    """
    if found_inf is not None:  # noqa: SIM102, it is decided when compiling and `and` would not be
        if tl.load(found_inf) != 0:
            return

    program = tl.program_id(0)
    tensor = tl.load(chunks + 2 * program)
    # 64 bits, since a tensor may have more than 2³¹ elements; 2³¹ chunks are more than any memory holds.
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * chunk_size
    left = tl.load(sizes + tensor) - start
    at = addresses + 5 * tensor

    # Factors are float64 until they meet the tensors, as Python's floats are in the reference.
    wide: tl.constexpr = tl.float64 if θ_type == tl.float64 else tl.float32
    η = tl.load(lr).to(tl.float64)
    decayed = (1.0 - tl.load(factors + 1) * η).to(wide)
    ηG = (η * tl.load(scales + tensor)).to(wide)
    rate = (1.0 - tl.load(factors)).to(wide)
    sign = -1.0 if maximize else 1.0
    if grad_scale is not None:
        sign = (sign / tl.load(grad_scale).to(tl.float64)).to(wide)
    key = 0
    first = start
    if places is not None:
        key = _key(tl.load(count))
        first += tl.load(places + tensor)

    _chunk(
        tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), start, left,
        sign, rate, decayed, ηG, key, first,
        θ_type, g_type, m_type, rounding, wide, chunk_size,
    )  # fmt: skip


# Numbers would be compiled in if they were 1, and again if 16 divides them.
_NUMBERS = [
    "θ_address",
    "g_address",
    "m_address",
    "absmax_address",
    "c_address",
    "size",
    "count",
    "first",
]


@triton.jit(do_not_specialize=_NUMBERS)
def step_alone(
    θ_address: tl.int64, g_address: tl.int64, m_address: tl.int64, absmax_address: tl.int64,
    c_address: tl.int64, size: tl.int64, sign: tl.float32, rate: tl.float32, decayed: tl.float32,
    ηG: tl.float32, count: tl.int64, first: tl.int64,
    θ_type: tl.constexpr, g_type: tl.constexpr, m_type: tl.constexpr,
    rounding: tl.constexpr, chunk_size: tl.constexpr,
):  # fmt: skip
    """Move one tensor, not of float64, as `step` does, whose tables are numbers here.

    `rate` is 1 − μ, `decayed` 1 − λη, and `first` the noise's place. The types are fixed, so
    that a kernel which was compiled for some numbers fits all.
    """
    start = tl.program_id(0).to(tl.int64) * chunk_size
    key = _key(count.to(tl.int64))
    _chunk(
        θ_address.to(tl.int64), g_address.to(tl.int64), m_address.to(tl.int64),
        absmax_address.to(tl.int64), c_address.to(tl.int64), start, size - start,
        sign, rate, decayed, ηG, key, first + start,
        θ_type, g_type, m_type, rounding, tl.float32, chunk_size,
    )  # fmt: skip


@triton.jit
def _chunk(
    θ_address, g_address, m_address, absmax_address, c_address, start, left,
    sign, rate, decayed, ηG, key, first,
    θ_type: tl.constexpr, g_type: tl.constexpr, m_type: tl.constexpr,
    rounding: tl.constexpr, wide: tl.constexpr, chunk_size: tl.constexpr,
):  # fmt: skip
    """Move `left` elements, at most a chunk, from `start` on; a whole chunk in vectors of 16 bytes."""
    aligned = (θ_address | g_address | m_address | c_address | 8 * first) % 16 == 0
    if (left >= chunk_size) & aligned:
        _move(
            θ_address, g_address, m_address, absmax_address, c_address, start, left, 16,
            sign, rate, decayed, ηG, key, first, θ_type, g_type, m_type, rounding, wide, chunk_size,
        )  # fmt: skip
    else:
        for _ in range(tl.cdiv(tl.minimum(left, chunk_size), _QUANTUM)):
            _move(
                θ_address, g_address, m_address, absmax_address, c_address, start, left, 1,
                sign, rate, decayed, ηG, key, first, θ_type, g_type, m_type, rounding, wide, _QUANTUM,
            )  # fmt: skip
            start += _QUANTUM
            first += _QUANTUM
            left -= _QUANTUM


@triton.jit
def _move(
    θ_address, g_address, m_address, absmax_address, c_address, start, left, alignment: tl.constexpr,
    sign, rate, decayed, ηG, key, first,
    θ_type: tl.constexpr, g_type: tl.constexpr, m_type: tl.constexpr,
    rounding: tl.constexpr, wide: tl.constexpr, chunk_size: tl.constexpr,
):  # fmt: skip
    # A row for each block of a momentum in 8 bits.
    rows = tl.arange(0, chunk_size // _QUANTUM)
    elements = rows[:, None] * _QUANTUM + tl.arange(0, _QUANTUM)[None, :]
    mask = None if alignment == 16 else elements < left
    θ_at = _pointer(θ_address, θ_type, alignment) + start + elements
    g_at = _pointer(g_address, g_type, alignment) + start + elements
    θ = tl.load(θ_at, mask).to(wide)
    if rounding == "kahan":
        c_type: tl.constexpr = tl.int16 if θ_type == tl.bfloat16 else θ_type
        c_at = _pointer(c_address, c_type, alignment) + start + elements
        c = tl.load(c_at, mask)
        θ = _joined(θ, c) if c_type == tl.int16 else θ + c.to(wide)

    bits, of_momentum = _random(first, key, alignment, chunk_size)  # compiled only where they are used
    m = tl.load(g_at, mask).to(wide) * sign
    if m_type is not None:
        g = m
        m_at = _pointer(m_address, m_type, alignment) + start + elements
        m = tl.load(m_at, mask)
        if m_type == tl.int8:
            absmax_at = _pointer(absmax_address, tl.float32, 4) + start // _QUANTUM + rows
            in_use = rows * _QUANTUM < left
            m = _decoded(m.to(tl.float32), tl.load(absmax_at, in_use, other=0.0)).to(wide)
        else:
            m = m.to(wide)
        # As torch.lerp: each form is exact at its own end, and exactly g where m = g.
        m = tl.where(rate < 0.5, m, g) + tl.where(rate < 0.5, rate, rate - 1.0) * (g - m)
        if m_type == tl.int8:
            held = m.to(tl.float32)
            held = tl.where(tl.abs(held) < float("inf"), held, 0.0)
            if mask is not None:
                held = tl.where(mask, held, 0.0)
            absmax = tl.max(tl.abs(held), 1)
            tl.store(absmax_at, absmax, in_use)
            tl.store(m_at, _encoded(held, absmax, of_momentum), mask)
        elif m_type == tl.bfloat16:
            raised = m.to(tl.float32).to(tl.uint32, bitcast=True) + of_momentum
            tl.store(m_at, _upper_half(raised), mask)
        elif m_type == tl.float16:
            tl.store(m_at, _in_float16(m.to(tl.float32), of_momentum), mask)
        else:
            tl.store(m_at, m.to(m_type), mask)

    θ = θ * decayed - ηG * m
    if rounding == "stochastic":
        rounded = _up_or_down(θ, bits)
    elif rounding == "kahan" and θ_type == tl.bfloat16:
        rounded = _up_or_down(θ, 0x8000)
    else:
        rounded = θ.to(θ_type)
    tl.store(θ_at, rounded, mask)
    if rounding == "kahan":
        if c_type == tl.int16:
            c = θ.to(tl.int32, bitcast=True).to(tl.int16)  # the lower half
        else:
            c = (θ - rounded.to(wide)).to(c_type)
        tl.store(c_at, c, mask)


@triton.jit
def _pointer(address, dtype: tl.constexpr, alignment: tl.constexpr):
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), alignment)


@triton.jit
def _decoded(codes, absmax):
    return codes * tl.abs(codes) * tl.div_rn(absmax, _SQUARE)[:, None]


@triton.jit
def _encoded(m, absmax, bits):
    """The codes of m, up or down by 16 random bits."""
    square = tl.abs(m) * tl.div_rn(_SQUARE, tl.maximum(absmax, _TINY))[:, None]
    # The last bits of a float32 near 1.5 · 2²³ are an integer, rounded half to even. A level that is one too
    # low by that goes up in any case.
    level = tl.sqrt(square) - 0.5 + _HALF_EVEN - _HALF_EVEN
    drawn = ((bits << 7).to(tl.int32) | _ONE).to(tl.float32, bitcast=True) - (1.0 - 2.0**-17)  # as `uniform`
    up = square - level * level - 2.0 * level * drawn > drawn
    level = tl.where(up, level + 1.0, level).to(tl.int32, bitcast=True)
    signed = (level | m.to(tl.int32, bitcast=True) & _SIGN).to(tl.float32, bitcast=True)
    return (signed + _HALF_EVEN).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _joined(θ, low):
    """As `rounding.exactly` of a bfloat16."""
    exact = (θ.to(tl.int32, bitcast=True) + low.to(tl.int32)).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(exact) < _ROUNDED_TO_INFINITY, exact, θ)


@triton.jit
def _up_or_down(θ, bits):
    """θ as a bfloat16 above or below, by 16 bits: random ones, or half a unit; what is none stays none."""
    whole = θ.to(tl.uint32, bitcast=True)
    return _upper_half(tl.where(θ == θ, whole + bits, whole))


@triton.jit
def _in_float16(m, bits):
    """As `rounding.in_16_bits`."""
    size = tl.abs(m)
    lifted = tl.where(size < 2.0**-14, 2.0**-14, 0.0)
    raised = (size + lifted).to(tl.uint32, bitcast=True) + (bits >> 3)
    rounded = ((raised >> 13) << 13).to(tl.float32, bitcast=True) - lifted
    return tl.where(m < 0, -rounded, rounded).to(tl.float16)


@triton.jit
def _upper_half(bits):
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _random(first, key, alignment: tl.constexpr, chunk_size: tl.constexpr):
    """16 bits for each element from `first` on, and 16 others for its momentum, as in `rounding`."""
    rows = tl.arange(0, chunk_size // _QUANTUM)[:, None]
    if alignment == 16:
        pairs = rows * (_QUANTUM // 2) + tl.arange(0, _QUANTUM // 2)[None, :]
        both = _mixed((((first >> 1).to(tl.uint32) + pairs.to(tl.uint32)) & (_PAIRS - 1)) ^ key)
        bits = tl.interleave(both & 0xFFFF, both >> 16)
        others = tl.interleave(both >> 16, both & 0xFFFF)
    else:
        places = first + rows * _QUANTUM + tl.arange(0, _QUANTUM)[None, :]
        both = _mixed(((places >> 1).to(tl.uint32) & (_PAIRS - 1)) ^ key)
        bits = tl.where(places % 2 == 0, both & 0xFFFF, both >> 16)
        others = tl.where(places % 2 == 0, both >> 16, both & 0xFFFF)
    return bits, others


@triton.jit
def _key(count):
    """As in `rounding.random_bits`."""
    key = _mixed((count >> 32).to(tl.uint32) + 0x1E3779B9)
    return _mixed(key ^ count.to(tl.uint32))


@triton.jit
def _mixed(x):
    """As in `rounding`."""
    x ^= x >> 16
    x *= 0x21F0AAAD
    x ^= x >> 15
    x *= 0xD35A2D97
    return x ^ (x >> 15)
