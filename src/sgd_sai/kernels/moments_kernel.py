"""Σg, Σg² and the number of elements that are not 0, of many tensors, in one pass over them.

Each program adds up one chunk of one tensor; a second launch adds up the chunks of each tensor, in their
order, so that the sums are the same in every run.
"""

# Triton's language has no types for mypy, and none of its own but tl.constexpr.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def of_chunks(chunks, sizes, addresses, partial, g_type: tl.constexpr, chunk_size: tl.constexpr):
    """Write the sums of every chunk.

    Args:
        chunks: int32 (programs, 2), a tensor's number and the number of a chunk of it.
        sizes, addresses: int64 (tensors,), elements, and where the first is, in bytes.
        partial: float64 (programs, 3), the sums.
        g_type: what lies at the addresses.
        chunk_size: elements of a chunk, a power of two.
    """
    program = tl.program_id(0)
    tensor = tl.load(chunks + 2 * program)
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * chunk_size
    left = tl.load(sizes + tensor) - start
    address = tl.load(addresses + tensor)
    width: tl.constexpr = 1024
    total = tl.zeros((width,), tl.float64)
    total_sq = tl.zeros((width,), tl.float64)
    nonzero = tl.zeros((width,), tl.int32)
    if (left >= chunk_size) & (address % 16 == 0):
        at = tl.multiple_of(address.to(tl.pointer_type(g_type)), 16) + start + tl.arange(0, width)
        for k in tl.static_range(0, chunk_size, width):
            g = tl.load(at + k)
            nonzero += (g != 0).to(tl.int32)
            x = g.to(tl.float64)
            total += x
            total_sq += x * x
    else:
        at = address.to(tl.pointer_type(g_type)) + start + tl.arange(0, width)
        for k in range(0, tl.minimum(left, chunk_size), width):
            g = tl.load(at + k, tl.arange(0, width) < left - k, other=0.0)
            nonzero += (g != 0).to(tl.int32)
            x = g.to(tl.float64)
            total += x
            total_sq += x * x
    tl.store(partial + 3 * program, tl.sum(total))
    tl.store(partial + 3 * program + 1, tl.sum(total_sq))
    tl.store(partial + 3 * program + 2, tl.sum(nonzero).to(tl.float64))


@triton.jit
def of_tensors(begins, partial, sums):
    """Add up the chunks of every tensor.

    Args:
        begins: int64 (tensors + 1,), where the chunks of each begin.
        partial: float64 (chunks, 3).
        sums: float64 (tensors, 3), the sums.
    """
    tensor = tl.program_id(0)
    begin = tl.load(begins + tensor)
    end = tl.load(begins + tensor + 1)
    width: tl.constexpr = 1024
    places = tl.arange(0, width)
    for kind in tl.static_range(3):
        total = tl.zeros((width,), tl.float64)
        for k in range(begin, end, width):
            total += tl.load(partial + 3 * (k + places) + kind, k + places < end, other=0.0)
        tl.store(sums + 3 * tensor + kind, tl.sum(total))
