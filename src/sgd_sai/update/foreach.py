"""Algorithm 1 with torch's multi-tensor operations, a bounded number of elements at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgd_sai.update.pieces import pieces

# What a step may allocate at once, in elements: 8 MiB of float32, whatever the model's size.
_BUCKET = 1 << 21

_Block = tuple[Tensor, Tensor, Tensor | None, float]


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
) -> None:
    """Move every parameter by one step, in place. Arguments and arithmetic as `reference.update`."""
    η, μ, λ = lr, momentum, weight_decay
    blocks = list(zip(params, grads, momenta, scales, strict=True))
    for bucket in [blocks] if torch.compiler.is_compiling() else _buckets(blocks):
        for θs, gs, ms, Gs in _alike(bucket):
            wide = torch.promote_types(θs[0].dtype, torch.float32)
            ηw = η.to(θs[0].device) if isinstance(η, Tensor) else η
            g_t = _to(gs, wide)
            if maximize:
                g_t = list(torch._foreach_neg(g_t))
            if ms:
                m_t = _to(ms, wide)
                torch._foreach_lerp_(m_t, g_t, 1 - μ)
                _store(ms, m_t)
            else:
                m_t = g_t
            θ_t = _to(θs, wide)
            if λ != 0:
                torch._foreach_mul_(θ_t, 1 - λ * ηw)
            move = torch._foreach_mul(m_t, Gs)
            torch._foreach_mul_(move, ηw)
            torch._foreach_sub_(θ_t, move)
            _store(θs, θ_t)
            del g_t, m_t, θ_t, move  # before the next bucket allocates its own


def _to(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors themselves where they have the dtype, else copies."""
    return tensors if tensors[0].dtype == dtype else [tensor.to(dtype) for tensor in tensors]


def _store(tensors: list[Tensor], results: list[Tensor]) -> None:
    # By dtype, as `_to` decides: torch.compile of torch 2.6 does not trace whether two lists are one.
    if results[0].dtype != tensors[0].dtype:
        torch._foreach_copy_(tensors, results)


def _buckets(blocks: list[_Block]) -> Iterator[list[_Block]]:
    """The blocks in order, large ones in pieces, a bounded number of elements at a time."""
    bucket: list[_Block] = []
    room = _BUCKET
    for θ, g, m, G in blocks:
        for piece in pieces(_BUCKET, θ, g, m):
            room -= piece[0].numel()
            if room < 0 and bucket:
                yield bucket
                bucket, room = [], _BUCKET - piece[0].numel()
            bucket.append((piece[0], piece[1], piece[2], G))
    if bucket:
        yield bucket


def _alike(
    bucket: list[_Block],
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor], list[float]]]:
    """Lists of one device and one dtype each, as multi-tensor kernels want them; no momenta: []."""
    alike: dict[object, list[_Block]] = {}
    for block in bucket:
        θ, g, m, _ = block
        alike.setdefault((θ.device, θ.dtype, g.dtype, m is None or m.dtype), []).append(block)
    for blocks in alike.values():
        θs, gs, ms, Gs = zip(*blocks, strict=True)
        yield list(θs), list(gs), [m for m in ms if m is not None], list(Gs)
