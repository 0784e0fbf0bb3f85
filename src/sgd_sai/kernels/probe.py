"""The smallest kernel: where it runs, Triton finds its compilers and a driver."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def set_to_one(address):
    """Write a 1."""
    tl.store(address, 1)
