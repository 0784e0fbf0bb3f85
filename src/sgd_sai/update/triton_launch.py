"""Algorithm 1 in one pass over θ, g and m on the GPU: one launch for all tensors of the same dtypes.

The kernel finds the tensors by a table of addresses, and its programs find their work by a table of chunks
of one size, so that a model's thousands of tiny tensors cost what their bytes cost. Tables are uploaded
from pinned memory when something has changed, and no step waits for the device.

Triton comes with torch on Linux; without a GPU its interpreter runs the same code (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache as once
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

# Elements that one program moves: 16 a thread, in vectors of 16 bytes.
CHUNK = 2048

_Block = tuple[Tensor, Tensor, Tensor | None]


def available(device: torch.device) -> bool:
    """True if `update` can run there: Triton is installed, and the device is a GPU that it compiles for.

    The CPU counts while TRITON_INTERPRET=1.
    """
    if not _installed():
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


@once
def _installed() -> bool:
    return find_spec("triton") is not None


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor | None],
    scales: Sequence[float],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    cache: dict[str, Any] | None = None,
) -> None:
    """Move every parameter by one step, in place. Arguments and arithmetic as `reference.update`, and:

    Args:
        lr: a tensor on the parameters' device is read there, when the step runs.
        grad_scale: one element on the device; every gradient is divided by it, as `torch.amp.GradScaler`
            asks of a fused optimizer. The gradients themselves stay as they are.
        found_inf: one element on the device; unless it is 0, nothing is changed.
        cache: where the tables are kept between the steps of the same parameters, a dict of the caller's
            that starts empty. None: they are built for this step alone.

    Tensors may lie in memory in any order without gaps. Where g or m lies in another order than θ, or θ
    has gaps, that operand goes through a copy, which the cache keeps.

    Raises:
        RuntimeError: in a CUDA graph capture, the tables do not fit and cannot be uploaded.
    """
    cache = {} if cache is None else cache
    blocks = list(zip(params, grads, momenta, strict=True))
    layout = [_layout(*block) for block in blocks]
    if cache.get("layout") != layout:
        cache["launches"] = _launches(blocks)
        cache["layout"] = layout
    for launch in cache["launches"]:
        arguments = launch(blocks, scales, lr, [momentum, weight_decay], maximize, grad_scale, found_inf)
        if _capturing(launch.device):  # a replay reads what the capture was given, also after it was replaced
            cache.setdefault("captured", []).append((launch, arguments))
    torch.autograd.graph.increment_version([t for θ, _, m in blocks for t in (θ, m) if t is not None])


def _layout(θ: Tensor, g: Tensor, m: Tensor | None) -> tuple[object, ...]:
    """What a launch depends on for as long as it lives; the addresses may change."""
    of_m = None if m is None else (m.dtype, _lie(m))
    return θ.device, θ.dtype, g.dtype, _lie(θ), _lie(g), of_m


def _lie(tensor: Tensor) -> object:
    """How the elements lie in memory; the shape of contiguous ones makes no difference, and takes time."""
    return tensor.numel() if tensor.is_contiguous() else (tensor.shape, tensor.stride())


def _launches(blocks: list[_Block]) -> list[_Launch]:
    """One for each device and triple of dtypes, over the blocks that have elements."""
    alike: dict[object, list[int]] = {}
    for place, (θ, g, m) in enumerate(blocks):
        if θ.numel() > 0:
            alike.setdefault((θ.device, θ.dtype, g.dtype, m is None or m.dtype), []).append(place)
    return [_Launch(places, [blocks[place] for place in places]) for places in alike.values()]


class _Launch:
    """Some blocks of a step, and the tables by which the kernel finds them."""

    def __init__(self, places: list[int], blocks: list[_Block]) -> None:
        θ, g, m = blocks[0]
        self.places = places
        self.device = θ.device
        self.dtypes = θ.dtype, g.dtype, None if m is None else m.dtype
        sizes = torch.tensor([θ.numel() for θ, _, _ in blocks], device="cpu")
        self.sizes = _upload(sizes, self.device)
        self.chunks = _upload(_chunks(sizes), self.device)
        self.addresses = _Table(torch.int64, self.device)
        self.scales = _Table(torch.float64, self.device)
        self.options = _Table(torch.float64, self.device)
        self.lr = _Table(torch.float64, self.device)
        self.copies = [_copy_of(t, block[0]) for block in blocks for t in block]

    def __call__(
        self,
        blocks: list[_Block],
        scales: Sequence[float],
        lr: float | Tensor,
        options: list[float],
        maximize: bool,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Move the blocks of this launch; returns the tensors that the kernel was given."""
        originals = [t for place in self.places for t in blocks[place]]
        operands = [
            t if copy is None or t is None else copy.copy_(t)
            for t, copy in zip(originals, self.copies, strict=True)
        ]
        if isinstance(lr, Tensor) and lr.device.type == self.device.type:
            η = self._here(lr)
        else:
            η = self.lr.of([float(lr)])
        arguments = (
            self.chunks,
            self.sizes,
            self.addresses.of([0 if t is None else t.data_ptr() for t in operands]),
            self.scales.of([scales[place] for place in self.places]),
            self.options.of(options),
            η,
            self._here(grad_scale),
            self._here(found_inf),
        )
        kernel = import_module("sgd_sai.update.triton_kernel")
        types = (kernel.TYPES[dtype] for dtype in self.dtypes)
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel.step[(len(self.chunks),)](*arguments, *types, maximize, CHUNK)
        for i, (t, copy) in enumerate(zip(originals, self.copies, strict=True)):
            if copy is not None and t is not None and i % 3 != 1:  # g stays as it is
                t.copy_(copy)
        return arguments

    def _here(self, number: Tensor | None) -> Tensor | None:
        return None if number is None else number.to(self.device, non_blocking=True)


class _Table:
    """Numbers that the kernel reads, uploaded again only when they have changed."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self.values: list[float] | list[int] = []
        self.tensor: Tensor

    def of(self, values: list[float] | list[int]) -> Tensor:
        if values != self.values:
            # A new tensor each time: a captured graph may go on reading the old one.
            self.tensor = _upload(torch.tensor(values, dtype=self.dtype, device="cpu"), self.device)
            self.values = values
        return self.tensor


def _chunks(sizes: Tensor) -> Tensor:
    """The number of a tensor and that of a chunk of it, for every chunk: int32 (chunks, 2)."""
    counts = (sizes + CHUNK - 1) // CHUNK
    tensors = torch.arange(len(sizes), device="cpu").repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return torch.stack((tensors, torch.arange(len(tensors), device="cpu") - first[tensors]), dim=1).int()


def _copy_of(tensor: Tensor | None, θ: Tensor) -> Tensor | None:
    """Room for a copy in the dense order nearest to θ's, or None where the tensor lies in it already."""
    if tensor is None or _order(tensor) == _order(torch.empty_like(θ, device="meta")):
        return None
    return torch.empty_like(θ, dtype=tensor.dtype)


def _order(tensor: Tensor) -> list[int]:
    """The order of the elements in memory; a dim of one element has no part in it."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def _upload(table: Tensor, device: torch.device) -> Tensor:
    """The table on the device, without waiting for it."""
    if device.type == "cpu":
        return table
    if _capturing(device):
        raise RuntimeError(
            "SGDSaI: the tables of this step have changed, and cannot be uploaded in a CUDA graph capture; "
            "allowed: the options and the gradients' addresses of the step before "
            "(zero_grad(set_to_none=False) keeps them), and lr as a tensor on the GPU"
        )
    return table.pin_memory().to(device, non_blocking=True)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
