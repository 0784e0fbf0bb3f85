"""Algorithm 1 once more, in float64 NumPy and from the paper alone: what the optimizer is checked against.

It shares no code with the package, and takes the obvious way everywhere: a two-pass variance, a dict per
block, a loop.
"""

from __future__ import annotations

import numpy as np


class Block:
    """A block θ with its momentum and its g-SNR."""

    def __init__(self, theta: np.ndarray, options: dict) -> None:
        self.theta, self.options = theta, options
        self.m = np.zeros_like(theta)
        self.G = None


def measure(g: np.ndarray, options: dict) -> float:
    if options["scale"] == "sqrt_d":
        return np.sqrt(g.size)
    norm = np.sqrt((g**2).sum())
    divisor = g.size - 1 if options["unbiased"] else g.size
    variance = ((g - g.mean()) ** 2).sum() / divisor if divisor else 0.0
    return norm / (max(np.sqrt(variance), norm / g.size) + options["eps"])


class NumpySaI:
    """`groups` is a list of (arrays, options); arrays are updated in place, blocks are arrays or parts.

    A complex array is given as pairs of reals, along a last dimension of 2.
    """

    def __init__(self, groups: list[tuple[list[np.ndarray], dict]]) -> None:
        self.G_max = self.G_rms = None
        self.groups = [
            [
                [Block(part, o) for part in np.split(a, o["split"])] if o["split"] > 1 else [Block(a, o)]
                for a in arrays
            ]
            for arrays, o in groups
        ]

    def step(self, grads: list[list[np.ndarray | None]]) -> None:
        present = []
        first, rests = {}, set()
        measured = []  # (G, gradient) of what is one block to the scales
        for group, group_grads in zip(self.groups, grads, strict=True):
            here = []
            for blocks, grad in zip(group, group_grads, strict=True):
                if grad is not None:
                    parts = np.split(grad, len(blocks)) if len(blocks) > 1 else [grad]
                    here += zip(blocks, parts, strict=True)
            present += here
            waiting = [(block, g) for block, g in here if block.G is None]
            units = [[pair] for pair in waiting]
            if waiting and waiting[0][0].options["blocks"] == "group":
                units = [waiting]
            known = [block.G for blocks in group for block in blocks if block.G is not None]
            for unit in units:
                g = np.concatenate([g.reshape(-1) for _, g in unit])
                if not np.isfinite(g).all():
                    rests |= {id(block) for block, _ in unit}
                elif (g != 0).any():
                    options = unit[0][0].options
                    G = known[0] if known and options["blocks"] == "group" else measure(g, options)
                    measured.append((G, g))
                    first |= {id(block): G for block, _ in unit}
        if first and self.G_max is None:
            self.G_max = max(first.values())
            total = sum(G**2 * (g**2).sum() for G, g in measured)
            self.G_rms = np.sqrt(total / sum((g != 0).sum() for _, g in measured))
        for block, g in present:
            o = block.options
            if o["maximize"]:
                g = -g
            if id(block) in first:
                block.G = first[id(block)]
                if o["measure_first"]:
                    block.m = None
                    continue
                block.m[...] = g
            elif id(block) in rests:
                continue
            elif block.m is None:
                block.m = np.array(g)
            else:
                block.m[...] = o["momentum"] * block.m + (1 - o["momentum"]) * g
            scale = 0.0 if block.G is None else block.G
            if o["normalize"] == "rms" and block.G is not None:
                scale = scale / self.G_rms
            elif o["normalize"] and block.G is not None:
                scale = min(scale / self.G_max, 1.0)
            block.theta[...] -= o["lr"] * o["weight_decay"] * block.theta
            block.theta[...] -= o["lr"] * scale * block.m
