"""What stands where a gradient was that gradient release has used and freed."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor


class Released(Tensor):
    """Stands where a gradient was, without its bytes: whoever reads it is told why it cannot be had."""

    @staticmethod
    def __new__(cls, param: Tensor) -> Released:
        """A stand-in of the parameter's shape, dtype and device."""
        released: Released = Tensor._make_wrapper_subclass(
            cls, param.shape, strides=param.stride(), dtype=param.dtype, device=param.device
        )
        return released

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Without values."""
        return f"Released(shape={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        """Refuse whatever would read or write the gradient."""
        raise RuntimeError(
            f"gradient_release: {func} wants a gradient that was used and freed inside backward. Clipping by "
            "the global norm, gradient accumulation, GradScaler and DistributedDataParallel need all of them "
            "after backward; train without them, or without gradient_release."
        )
