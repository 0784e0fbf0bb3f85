"""The kernel that `triton_launch` runs on the GPU: each program moves one chunk of one tensor."""

# Triton's language has no types for mypy, and none of its own but tl.constexpr.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import torch
import triton
import triton.language as tl

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    None: None,
}


@triton.jit
def step(
    chunks,
    sizes,
    addresses,
    scales,
    factors,
    lr,
    grad_scale,
    found_inf,
    θ_type: tl.constexpr,
    g_type: tl.constexpr,
    m_type: tl.constexpr,
    maximize: tl.constexpr,
    chunk_size: tl.constexpr,
):
    """One step of Algorithm 1, with the arithmetic of `reference.update`.

    Args:
        chunks: int32 (programs, 2), a tensor's number and the number of a chunk of it.
        sizes: int64 (tensors,), elements.
        addresses: int64 (tensors, 3), of θ, g and m, in bytes.
        scales: float64 (tensors,), G̃.
        factors: float64 (2,), μ and λ.
        lr: η, one element of any floating dtype.
        grad_scale: None, or one element that divides every gradient.
        found_inf: None, or one element; unless it is 0, nothing is written.
        θ_type, g_type, m_type: what lies at the addresses; m_type None: no momentum.
        maximize: ascend.
        chunk_size: elements of a chunk, a power of two.
    """
    if found_inf is not None:  # noqa: SIM102, it is decided when compiling and `and` would not be
        if tl.load(found_inf) != 0:
            return

    program = tl.program_id(0)
    tensor = tl.load(chunks + 2 * program)
    # 64 bits, since a tensor may have more than 2³¹ elements; 2³¹ chunks are more than any memory holds.
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * chunk_size
    left = tl.load(sizes + tensor) - start
    θ_address = tl.load(addresses + 3 * tensor)
    g_address = tl.load(addresses + 3 * tensor + 1)
    m_address = tl.load(addresses + 3 * tensor + 2)

    # Factors are float64 until they meet the tensors, as Python's floats are in the reference.
    wide: tl.constexpr = tl.float64 if θ_type == tl.float64 else tl.float32
    η = tl.load(lr).to(tl.float64)
    μ = tl.load(factors)
    λ = tl.load(factors + 1)
    decayed = (1.0 - λ * η).to(wide)
    ηG = (η * tl.load(scales + tensor)).to(wide)
    sign = -1.0 if maximize else 1.0
    if grad_scale is not None:
        sign = (sign / tl.load(grad_scale).to(tl.float64)).to(wide)

    elements = tl.arange(0, chunk_size)
    if (left >= chunk_size) & ((θ_address | g_address | m_address) % 16 == 0):
        _move(
            θ_address, g_address, m_address, start, elements, None, 16,
            sign, μ, decayed, ηG, θ_type, g_type, m_type, wide,
        )  # fmt: skip
    else:
        _move(
            θ_address, g_address, m_address, start, elements, elements < left, 1,
            sign, μ, decayed, ηG, θ_type, g_type, m_type, wide,
        )  # fmt: skip


@triton.jit
def _move(
    θ_address, g_address, m_address, start, elements, mask, alignment: tl.constexpr,
    sign, μ, decayed, ηG,
    θ_type: tl.constexpr, g_type: tl.constexpr, m_type: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Move the elements where the mask is True; without one and at 16 bytes, in vectors of 16 bytes."""
    θ_at = _pointer(θ_address, θ_type, alignment) + start + elements
    g_at = _pointer(g_address, g_type, alignment) + start + elements
    θ = tl.load(θ_at, mask).to(wide)
    m = tl.load(g_at, mask).to(wide) * sign
    if m_type is not None:
        g = m
        m_at = _pointer(m_address, m_type, alignment) + start + elements
        m = tl.load(m_at, mask).to(wide)
        # As torch.lerp: each form is exact at its own end, and exactly g where m = g.
        rate = (1.0 - μ).to(wide)
        m = tl.where(rate < 0.5, m + rate * (g - m), g - (1.0 - rate) * (g - m))
        tl.store(m_at, m.to(m_type), mask)
    tl.store(θ_at, (θ * decayed - ηG * m).to(θ_type), mask)


@triton.jit
def _pointer(address, dtype: tl.constexpr, alignment: tl.constexpr):
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), alignment)
