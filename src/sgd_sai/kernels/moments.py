"""The sums of gradients on a GPU that g-SNR needs. Each gradient is read once; the host never waits."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor

from sgd_sai.kernels import tables

# Elements that one program adds up: enough for the table of partial sums to be small.
CHUNK = 16384


def sums(gradients: Sequence[Tensor]) -> Tensor:
    """(Σg, Σg², elements ≠ 0) of each gradient in float64, of shape (gradients, 3), on their device.

    The gradients are real, of any floating dtype, and on one device.
    """
    rows = torch.empty(len(gradients), 3, dtype=torch.float64, device=gradients[0].device)
    alike: dict[torch.dtype, list[int]] = {}
    for place, gradient in enumerate(gradients):
        alike.setdefault(gradient.dtype, []).append(place)
    for places in alike.values():
        of_dtype = _sums([gradients[place] for place in places])
        if len(alike) == 1:
            return of_dtype
        rows[torch.tensor(places).to(rows.device)] = of_dtype
    return rows


def _sums(gradients: list[Tensor]) -> Tensor:
    """As `sums`, of gradients of one dtype."""
    device, dtype = gradients[0].device, gradients[0].dtype
    dense = [_dense(gradient) for gradient in gradients]
    sizes = torch.tensor([gradient.numel() for gradient in dense], device="cpu")
    chunks = tables.chunks_of(sizes, CHUNK)
    begins = torch.searchsorted(chunks[:, 0].contiguous(), torch.arange(len(dense) + 1, device="cpu"))
    addresses = torch.tensor([gradient.data_ptr() for gradient in dense], device="cpu")
    partial = torch.empty(len(chunks), 3, dtype=torch.float64, device=device)
    rows = torch.empty(len(dense), 3, dtype=torch.float64, device=device)
    kernel = import_module("sgd_sai.kernels.moments_kernel")
    of_dtype = import_module("sgd_sai.kernels.step_kernel").TYPES[dtype]
    uploaded = [tables.upload(table, device) for table in (chunks, sizes, addresses)]
    with tables.on(device):
        if len(chunks):
            kernel.of_chunks[(len(chunks),)](*uploaded, partial, of_dtype, CHUNK)
        kernel.of_tensors[(len(dense),)](tables.upload(begins, device), partial, rows)
    return rows


def _dense(gradient: Tensor) -> Tensor:
    """The gradient, or a copy if it has gaps: its elements lie together, in any order."""
    gradient = gradient.resolve_neg()  # a copy too, if its bytes are those of −g
    if gradient.is_contiguous():
        return gradient
    like = torch.empty_like(gradient, device="meta")
    return gradient if tables.order(gradient) == tables.order(like) else gradient.contiguous()
