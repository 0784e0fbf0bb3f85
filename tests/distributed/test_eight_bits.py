"""Momentum in 8 bits of DTensors: the codes and scales of one process, cut over the ranks."""

from __future__ import annotations

from typing import Any

import torch
from test_dtensor import MESH_1D, MESH_2D, DTensorOps, shard, share_of, spread, tensor_parallel
from tiny import LATE, OPTIONS, Tiny, assert_same_outcome, outcome, quiet_step, train, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing import assert_close
from world import world

from sgd_sai import SGDSaI, gradient_release
from sgd_sai.quantized import read_whole

#: The mesh, the shape, how it is cut, and how its gradient is.
CUT: dict[str, Any] = {
    "uneven rows": (MESH_1D, (10, 512), [Shard(0)], [Shard(0)]),
    "empty shards": (MESH_1D, (2, 2560), [Shard(0)], [Shard(0)]),
    "uneven, of three dims": (MESH_1D, (4, 7, 256), [Shard(1)], [Shard(1)]),
    "columns": (MESH_1D, (6, 1024), [Shard(1)], [Shard(1)]),
    "replicas of shards": (MESH_2D, (9, 512), [Replicate(), Shard(0)], [Replicate(), Shard(0)]),
    "shards of shards": (MESH_2D, (7, 1024), [Shard(0), Shard(1)], [Shard(0), Shard(1)]),
    "columns twice": (MESH_2D, (4, 1024), [Shard(1), Shard(1)], [Shard(1), Shard(1)]),
    "gradient to be summed": (MESH_1D, (12, 512), [Shard(0)], [Partial()]),
    "replicated": (MESH_1D, (20, 10, 5, 5), [Replicate()], [Replicate()]),
}
#: Whose shards end within blocks of 256, or could on another number of ranks.
WITHIN: dict[str, Any] = {
    "a convolution": (MESH_1D, (20, 10, 5, 5), [Shard(0)], [Shard(0)]),
    "no multiple of 256": (MESH_1D, (30, 300), [Shard(0)], [Shard(0)]),
    "of one dim": (MESH_1D, (8192,), [Shard(0)], [Shard(0)]),
    "columns that end within": (MESH_1D, (12, 768), [Shard(1)], [Shard(1)]),
    "columns twice that end within": (MESH_2D, (12, 512), [Shard(1), Shard(1)], [Shard(1), Shard(1)]),
}
SMALL: dict[str, Any] = {"small": (MESH_1D, (10, 256), [Shard(0)], [Shard(0)])}

GIVEN = [
    ({}, torch.float32),
    ({"weight_decay": 0.1, "foreach": True, "maximize": True}, torch.float32),
    ({"split": 2}, torch.float32),
    ({"measure_first": True, "blocks": "group"}, torch.float32),
    ({"rounding": "kahan"}, torch.bfloat16),
    ({"rounding": "stochastic"}, torch.bfloat16),
    ({}, torch.complex64),
]


def beside_the_whole(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Steps of DTensors, and of plain tensors whose momentum has as many bits: in 8 bits bit for bit."""
    meshes = {shape: init_device_mesh("cpu", shape) for shape in (MESH_1D, MESH_2D)}
    generator = torch.Generator().manual_seed(0)
    layouts = [(layout, "8bit") for layout in CUT.values()]
    layouts += [(layout, torch.bfloat16) for layout in WITHIN.values()]
    layouts += [(layout, None) for layout in SMALL.values()]
    if dtype.is_complex:  # as pairs of reals, whose last dim is 2: no shard is of whole blocks
        layouts = [
            (layout, state_dtype if state_dtype is None or layout[2] == [Replicate()] else torch.bfloat16)
            for layout, state_dtype in layouts
        ]
    if split := options.get("split"):
        layouts = [of for of in layouts if of[0][1][0] % split == 0]
        assert len(layouts) > 8
    plain, shared = [], []
    for (mesh, shape, placements, _), _ in layouts:
        start = torch.randn(shape, generator=generator, dtype=dtype)
        plain.append(nn.Parameter(start.clone()))
        shared.append(nn.Parameter(distribute_tensor(start, meshes[mesh], placements)))
    options = {"lr": 0.1, "scale": "sqrt_d", **options}  # a g-SNR depends on the order of a sum
    groups = [
        {"params": [p], "state_dtype": state_dtype}
        for p, (_, state_dtype) in zip(plain, layouts, strict=True)
    ]
    truth = SGDSaI(groups, **options)
    optimizer = SGDSaI([{"params": [p]} for p in shared], state_dtype="8bit", **options)
    for step in range(4):
        for ((mesh, shape, _, placements), _), p, q in zip(layouts, plain, shared, strict=True):
            p.grad = torch.randn(shape, generator=generator, dtype=dtype)
            q.grad = spread(p.grad, meshes[mesh], placements)
        for of in (truth, optimizer):
            for group in of.param_groups:
                group["rounding_step"] = step
        partial = sum(q.grad.placements != q.placements for q in shared)
        with CommDebugMode() as collectives, DTensorOps() as ops:
            quiet_step(optimizer)
        quiet_step(truth)
        assert step == 0 or collectives.get_total_counts() == partial
        assert step == 0 or partial or ops.count == 0
    for ((_, _, placements, _), state_dtype), p, q in zip(layouts, plain, shared, strict=True):
        kept, state = truth.state[p], optimizer.state[q]
        assert state["momentum_buffer"].placements == q.placements
        assert isinstance(state.get("momentum_absmax"), DTensor) == (state_dtype == "8bit")
        found = {key: whole(state[key]) for key in {"momentum_buffer", "momentum_absmax"} & kept.keys()}
        assert all(kept[key].any() for key in found)
        if Shard(1) in placements and state_dtype is not None:  # the bits of rounding follow rows
            a_code = 0.05 * float(momentum_in(kept, kept).abs().max())
            assert_close(momentum_in(state, found), momentum_in(kept, kept), rtol=0, atol=a_code)
            assert_close(whole(q), p.detach(), rtol=0.05, atol=0.2 * a_code)
            continue
        # Wide tensors are rounded otherwise in pieces of another size.
        same = assert_equal if state_dtype == "8bit" else assert_close
        for key in found:
            same(found[key], kept[key])
        same(whole(q), p.detach())


def momentum_in(state: dict[str, Any], whole: dict[str, torch.Tensor]) -> torch.Tensor:
    """In float32, from the tensors of a state, as wholes."""
    if whole["momentum_buffer"].dtype != torch.int8:
        return torch.view_as_real(m) if (m := whole["momentum_buffer"]).is_complex() else m.float()
    split = sum(key.startswith("gsnr_") and key[5:].isdigit() for key in state) or 1
    return read_whole(whole["momentum_buffer"], whole["momentum_absmax"], split, is_complex=False)


def assert_equal(found: torch.Tensor, truth: torch.Tensor) -> None:
    """Bit for bit, and of one dtype."""
    assert_close(found, truth, rtol=0, atol=0)


def with_each_option() -> None:
    for options, dtype in GIVEN:
        beside_the_whole(options, dtype)


def test_equals_one_process_bit_for_bit() -> None:
    world(4, with_each_option)


#: Its matrices are cut between blocks also by 2 ranks that share columns.
WIDTH = 512


def trained(
    model: Tiny, share: slice = slice(None), *, released: bool = False, **options: Any
) -> dict[str, Any]:
    """Some layer has its first gradient late, and all scales are lost once; momenta go on."""
    optimizer = SGDSaI(model.parameters(), **OPTIONS, state_dtype="8bit", **options)
    if released:
        gradient_release(model, optimizer)
    train(model, optimizer, range(LATE - 1, LATE + 1), share)
    optimizer.measure_again()
    train(model, optimizer, [LATE + 1], share)
    return outcome(model, optimizer) | {"narrow": narrow_of(model, optimizer)}


def narrow_of(model: Tiny, optimizer: SGDSaI) -> set[str]:
    """The parameters whose momentum has 8 bits."""
    dtypes = {name: optimizer.state[p]["momentum_buffer"].dtype for name, p in model.named_parameters()}
    assert set(dtypes.values()) == {torch.int8, torch.float32}
    return {name for name, dtype in dtypes.items() if dtype == torch.int8}


def in_several_layouts() -> list[dict[str, Any]]:
    mesh = init_device_mesh("cpu", MESH_2D, mesh_dim_names=("a", "b"))
    flat = mesh["a", "b"]._flatten("flat")
    return [
        trained(shard(Tiny(width=WIDTH), mesh), share_of(flat)),  # HSDP
        trained(shard(tensor_parallel(Tiny(width=WIDTH), mesh["b"]), mesh["a"]), share_of(mesh["a"])),
        trained(shard(Tiny(width=WIDTH), flat), share_of(flat), released=True),
    ]


def test_real_layouts_equal_one_process() -> None:
    """HSDP, FSDP2 x tensor parallel, and FSDP2 with gradient release.

    Sums of another order round some momenta to the next code, and shards of columns take other random bits; a
    float32 state is 1e-2 away.
    """
    truth = trained(Tiny(width=WIDTH))
    assert len(truth["narrow"]) == 14
    results = world(4, in_several_layouts)
    for found in (of for rank in results for of in rank):
        assert found["narrow"] == truth["narrow"]
    for rank in results:
        for found, near in zip(rank, (1e-3, 1e-2, 1e-3), strict=True):
            assert_same_outcome(found, truth, params=near, momenta=3 * near, gsnr=near)
