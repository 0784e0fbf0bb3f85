"""Algorithm 1 in one pass over θ, g and m on the GPU: one launch for all tensors of the same dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor

from sgd_sai.kernels import tables
from sgd_sai.kernels.tables import Table, capturing, order, upload
from sgd_sai.quantized import FEW_BITS, Momentum, noise_of, stored_in
from sgd_sai.rounding import Noise, Rounding, kind_of
from sgd_sai.update.pieces import check_shapes
from sgd_sai.update.triton_alone import CHUNK, Alone


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Momentum],
    scales: Sequence[float],
    *,
    roundings: Sequence[Rounding],
    step: int | Tensor,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    cache: dict[str, Any] | None = None,
) -> None:
    """Move every parameter by one step, in place. Arguments and arithmetic as `quantized.update`, and:

    Args:
        lr, step: tensors on the parameters' device are read there, when the kernel runs.
        grad_scale: one element on the device; every gradient is divided by it, as `torch.amp.GradScaler`
            asks of a fused optimizer. The gradients themselves stay as they are.
        found_inf: one element on the device; unless it is 0, nothing is changed.
        cache: where the tables are kept between the steps of the same parameters, a dict of the caller's
            that starts empty. None: they are built for this step alone.

    Tensors may lie in memory in any order without gaps. Where g or m lies in another order than θ, or θ
    has gaps, that operand goes through a copy, which the cache keeps. A momentum in 8 bits is contiguous:
    next to it, whatever is not goes through a copy.

    Raises:
        RuntimeError: in a CUDA graph capture, the tables do not fit and cannot be uploaded.
    """
    cache = {} if cache is None else cache
    operands = _Operands(params, grads, momenta, roundings)
    if cache.get("layout") != (layout := operands.layout()):
        cache["launches"] = operands.launches()
        cache["layout"] = layout
    addresses = operands.addresses()
    options = {"momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
    for launch in cache["launches"]:
        arguments = launch(operands, addresses, scales, lr, step, options, grad_scale, found_inf)
        if capturing(launch.device):  # a replay reads what the capture was given, also after it was replaced
            cache.setdefault("captured", []).append((launch, arguments))
    torch.autograd.graph.increment_version(operands.written())


class _Operands:
    """The tensors of a step in columns, one after the other: all θ, g, m, absmax of m, and compensations.

    They are looked at column by column, which takes a fraction of the time of doing it block by block.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        momenta: Sequence[Momentum],
        roundings: Sequence[Rounding],
    ) -> None:
        self.blocks = len(params)
        none: Sequence[Any] = [None] * self.blocks
        stored, absmaxes, losses, self.noises = momenta, none, none, none
        self.roundings: Sequence[str] = ["nearest"] * self.blocks
        if not set(map(type, momenta)) | set(map(type, roundings)) <= {Tensor, type(None)}:
            stored, absmaxes = zip(*map(stored_in, momenta), strict=True)
            self.noises = list(map(noise_of, momenta, roundings))
        if any(rounding is not None for rounding in roundings):
            losses = [of if isinstance(of, Tensor) else None for of in roundings]
            self.roundings = list(map(kind_of, roundings))
        self.tensors: list[Any] = [*params, *grads, *stored, *absmaxes, *losses]
        self.given = [tensor for tensor in self.tensors if tensor is not None]

    def of_block(self, place: int) -> list[Tensor | None]:
        """The tensors of a block in their order."""
        return self.tensors[place :: self.blocks]

    def layout(self) -> tuple[object, ...]:
        """All that the launches depend on for as long as they live; the addresses may change."""
        in_order: list[object] = list(map(Tensor.is_contiguous, self.given))
        if not all(in_order) or any(map(Tensor.is_neg, self.given)):
            in_order = [
                None if t.is_contiguous() and not t.is_neg() else (t.shape, t.stride(), t.is_neg())
                for t in self.given
            ]
        return (
            [tensor is None for tensor in self.tensors],
            [tensor.dtype for tensor in self.given],
            list(map(Tensor.numel, self.given)),
            in_order,
            [tensor.device for tensor in self.given[: self.blocks]],
            self.noises,
            self.roundings,
        )

    def addresses(self) -> list[int]:
        """Of the tensors; 0 for None."""
        if len(self.given) == len(self.tensors):
            return list(map(Tensor.data_ptr, self.given))
        return [0 if tensor is None else tensor.data_ptr() for tensor in self.tensors]

    def is_gradient(self, index: int) -> bool:
        """True for those of the tensors that a step does not change."""
        return self.blocks <= index < 2 * self.blocks

    def written(self) -> list[Tensor]:
        """The tensors that a step changes."""
        return self.given[: self.blocks] + self.given[2 * self.blocks :]

    def launches(self) -> list[_Launch]:
        """One for each kind of blocks that have elements."""
        alike: dict[object, list[int]] = {}
        for place in range(self.blocks):
            θ, g, m, _, c = self.of_block(place)
            assert θ is not None
            assert g is not None
            check_shapes(θ, g, m, c)
            kind = θ.device, θ.dtype, g.dtype, m is None or m.dtype, self.roundings[place]
            if θ.numel() > 0:
                alike.setdefault(kind, []).append(place)
        return [_Launch(self, places) for places in alike.values()]


class _Launch:
    """Some blocks of a step, and the tables by which the kernel finds them."""

    def __init__(self, operands: _Operands, places: list[int]) -> None:
        blocks: list[Any] = [operands.of_block(place) for place in places]
        θ, g, m, _, _ = blocks[0]
        self.places = places
        self.device = θ.device
        self.dtypes = θ.dtype, g.dtype, None if m is None else m.dtype
        self.rounding = operands.roundings[places[0]]
        self.alone: Alone | None = None
        # One tensor needs no tables. Its factors go in as float32.
        if len(places) == 1 and θ.dtype != torch.float64:
            self.alone = Alone(self.dtypes, self.rounding, θ.numel())
        sizes = torch.tensor([block[0].numel() for block in blocks], device="cpu")
        self.sizes = upload(sizes, self.device)
        self.chunks = upload(tables.chunks_of(sizes, CHUNK), self.device)
        self.noises = None
        if self.rounding == "stochastic" or self.dtypes[2] in FEW_BITS:
            noises = [(operands.noises[place] or Noise(0)).place for place in places]
            self.noises = upload(torch.tensor(noises, dtype=torch.int64, device="cpu"), self.device)
        self.addresses = Table(torch.int64, self.device)
        self.scales = Table(torch.float64, self.device)
        self.factors = Table(torch.float64, self.device)
        self.lr = Table(torch.float64, self.device)
        self.step = Table(torch.int64, self.device)
        self.copies: list[tuple[int, Tensor]] = []  # where among the operands, and the room
        rows = [[place + kind * operands.blocks for kind in range(5)] for place in places]
        for row, block in zip(rows, blocks, strict=True):
            for kind, copy in copies(*block):
                self.copies.append((row[kind], copy))
                row[kind] = len(operands.tensors) + len(self.copies) - 1
        self.rows = itemgetter(*(index for row in rows for index in row))

    def __call__(
        self,
        operands: _Operands,
        addresses: list[int],
        scales: Sequence[float],
        lr: float | Tensor,
        step: int | Tensor,
        options: dict[str, Any],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Move the blocks of this launch; returns the tensors that the kernel was given."""
        copied = [(copy.copy_(cast(Tensor, operands.tensors[i])), i) for i, copy in self.copies]
        row = self.rows(addresses + [copy.data_ptr() for copy, _ in copied])
        arguments: tuple[Tensor | None, ...] = ()
        with tables.on(self.device):
            if self.alone and not any(isinstance(of, Tensor) for of in (lr, step, grad_scale, found_inf)):
                [place] = self.places
                now: dict[str, Any] = {"lr": lr, "step": step}
                self.alone(row, scales[place], operands.noises[place], **now, **options)
            else:
                factors = [options["momentum"], options["weight_decay"]]
                arguments = (
                    self.chunks,
                    self.sizes,
                    self.addresses.of(row),
                    self.scales.of([scales[place] for place in self.places]),
                    self.noises,
                    self.factors.of(factors),
                    self._here(lr, self.lr),
                    None if self.noises is None else self._here(step, self.step),
                    None if grad_scale is None else grad_scale.to(self.device, non_blocking=True),
                    None if found_inf is None else found_inf.to(self.device, non_blocking=True),
                )
                kernel = import_module("sgd_sai.kernels.step_kernel")
                kinds = (*(kernel.TYPES[dtype] for dtype in self.dtypes), self.rounding)
                kernel.step[(len(self.chunks),)](*arguments, *kinds, options["maximize"], CHUNK)
        for copy, i in copied:
            if not operands.is_gradient(i):
                cast(Tensor, operands.tensors[i]).copy_(copy)
        return arguments

    def _here(self, number: float | Tensor, table: Table) -> Tensor:
        """A number where the kernel reads it: a tensor of this kind of device as it is, others uploaded."""
        if isinstance(number, Tensor) and number.device.type == self.device.type:
            return number.to(self.device, non_blocking=True)
        return table.of([number.item() if isinstance(number, Tensor) else number])


def copies(
    θ: Tensor, g: Tensor, m: Tensor | None, absmax: Tensor | None, c: Tensor | None
) -> Iterator[tuple[int, Tensor]]:
    """Room for a copy of each tensor that does not lie in the dense order of the block, after its kind.

    Nor does one whose bytes are those of its negative, as autograd makes it of complex numbers. The order is
    that nearest to θ's. A momentum in 8 bits has its own, the index's, which its blocks follow.
    """
    dense = torch.empty_like(θ, device="meta") if m is None or absmax is None else m
    for kind, tensor in enumerate((θ, g, m, None, c)):
        if tensor is not None and (order(tensor) != order(dense) or tensor.is_neg()):
            yield kind, torch.empty_strided(dense.shape, dense.stride(), dtype=tensor.dtype, device=θ.device)
