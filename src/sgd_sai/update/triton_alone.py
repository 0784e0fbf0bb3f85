"""The step of one tensor on the GPU, whose kernel takes numbers instead of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache as once
from importlib import import_module

import torch

from sgd_sai.rounding import Noise

# Elements that one program moves: 16 a thread, in vectors of 16 bytes.
CHUNK = 2048


class Alone:
    """The launch for a tensor of one size and kind, on the current device; not for float64."""

    def __init__(self, dtypes: Sequence[torch.dtype | None], rounding: str, size: int) -> None:
        """What stays the same.

        Args:
            dtypes: of θ, g and m; None for m if there is no momentum.
            rounding: "nearest", "stochastic" or "kahan".
            size: elements.
        """
        kernel = import_module("sgd_sai.kernels.step_kernel")
        self._size = size
        self._kinds = (*(kernel.TYPES[dtype] for dtype in dtypes), rounding, CHUNK)
        self._grid = -(-size // CHUNK), 1, 1
        self._launch: Callable[..., object] = kernel.step_alone[self._grid]
        self._is_compiled = False

    def __call__(
        self,
        addresses: Sequence[int],
        scale: float,
        noise: Noise | None,
        *,
        lr: float,
        step: int,
        momentum: float,
        weight_decay: float,
        maximize: bool,
    ) -> None:
        """Move it by one step: the arguments are those of `triton_launch.update`, for one tensor.

        `addresses` are those of θ, g, m, m's absmax and θ's compensation; 0 for what there is not.
        """
        # Of NumPy's few bits a product would be rounded to those.
        η, μ, λ = float(lr), float(momentum), float(weight_decay)
        numbers = (-1.0 if maximize else 1.0, 1.0 - μ, 1.0 - λ * η, η * scale, step)
        launched = self._launch(*addresses, self._size, *numbers, noise.place if noise else 0, *self._kinds)
        # To look for the kernel takes Triton as long as all the rest. Since its types are fixed, it stays.
        if not self._is_compiled and launched is not None and _takes_all_arguments():
            self._launch = launched[self._grid]  # type: ignore[index]
        self._is_compiled = True


@once
def _takes_all_arguments() -> bool:
    """True if a compiled kernel takes all arguments of its function, also those that are compiled in."""
    major, minor = import_module("triton").__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 6)
