"""DTensor parameters: FSDP2, HSDP and tensor parallelism give what one process gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import (
    BATCH,
    LATE,
    OPTIONS,
    STEPS,
    Counting,
    Tiny,
    assert_same_outcome,
    batch,
    loss_of,
    one_process,
    outcome,
    quiet_step,
    train,
    whole,
)
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from world import world

from sgd_sai import UNLATCHED, SGDSaI, gradient_release


def shard(model: Tiny, mesh: DeviceMesh, **policy: Any) -> Tiny:
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def tensor_parallel(model: Tiny, mesh: DeviceMesh) -> Tiny:
    """Heads, MLP and vocabulary over the ranks; norms and the gain on parts of the sequence (dim 1)."""
    columns = ColwiseParallel(input_layouts=Shard(1))
    rows = RowwiseParallel(output_layouts=Shard(1))
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "late": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        **{f"blocks.*.{name}": SequenceParallel() for name in ("norm1", "norm2")},
        **{f"blocks.*.{name}": columns for name in ("q", "k", "v", "up")},
        **{f"blocks.*.{name}": rows for name in ("out", "down")},
    }
    parallelize_module(model, mesh, plan)
    model.head.weight = model.embedding.weight
    model.gain = nn.Parameter(distribute_tensor(model.gain.detach(), mesh, [Replicate()]))
    return model


def share_of(data: DeviceMesh) -> slice:
    each = BATCH // data.size()
    return slice(data.get_local_rank() * each, (data.get_local_rank() + 1) * each)


def trained(model: Tiny, share: slice = slice(None), **options: Any) -> Any:
    optimizer = SGDSaI(model.parameters(), **OPTIONS, **options)
    counting = Counting(optimizer)
    summed: list[int] = []  # gradients that the step itself has to sum first

    def note() -> None:
        grads = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        summed.append(sum(g.placements != p.placements for p, g in grads))

    train(model, counting, share=share, after_backward=note)
    for p in model.parameters():
        assert optimizer.state[p]["momentum_buffer"].placements == p.placements
    return outcome(model, optimizer), [n - m for n, m in zip(counting.collectives, summed, strict=True)]


def fsdp2() -> Any:
    mesh = init_device_mesh("cpu", (4,))
    model = shard(Tiny(), mesh)
    assert model.gain.to_local().numel() == (dist.get_rank() == 0)  # three empty shards
    return trained(model, share_of(mesh))


def hsdp() -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return trained(shard(Tiny(), mesh), share_of(mesh["replicate", "shard"]._flatten("data")))


def tp() -> Any:
    return trained(tensor_parallel(Tiny(()), init_device_mesh("cpu", (2,))))


def fsdp2_with_tp() -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return trained(shard(tensor_parallel(Tiny(), mesh["tensor"]), mesh["data"]), share_of(mesh["data"]))


@pytest.mark.parametrize(
    ("scenario", "ranks", "gain", "groups"),
    [(fsdp2, 4, (1,), 1), (hsdp, 4, (1,), 1), (tp, 2, (), 1), (fsdp2_with_tp, 4, (1,), 2)],
    ids=["fsdp2", "hsdp", "tp", "fsdp2 x tp"],
)
def test_equals_one_process(scenario: Any, ranks: int, gain: Any, groups: int) -> None:
    """And measures with one collective for each group that shares: at step 0, and for the late layer."""
    truth = one_process(gain)
    for found, collectives in world(ranks, scenario):
        assert_same_outcome(found, truth)
        assert collectives == [groups if step in (0, LATE) else 0 for step in range(STEPS)]


def released(how: str, options: dict[str, Any]) -> Any:
    """Each parameter moved inside backward; also how many gradients were left after each backward."""
    mesh = init_device_mesh("cpu", (2,))
    model = tensor_parallel(Tiny(()), mesh) if how == "tp" else shard(Tiny(), mesh)
    optimizer = SGDSaI(model.parameters(), **OPTIONS, **options)
    gradient_release(model, optimizer)
    left: list[int] = []

    def count() -> None:
        left.append(sum(type(param.grad) is DTensor for param in model.parameters()))

    train(model, optimizer, range(LATE, LATE + 6), slice(None) if how == "tp" else share_of(mesh), count)
    return outcome(model, optimizer), left


@pytest.mark.parametrize("options", [{}, {"measure_first": True}], ids=str)
@pytest.mark.parametrize("how", ["tp", "fsdp2"])
def test_gradient_release(how: str, options: dict[str, Any]) -> None:
    model = Tiny(() if how == "tp" else (1,))
    optimizer = SGDSaI(model.parameters(), **OPTIONS, **options)
    train(model, optimizer, range(LATE, LATE + 6))
    first = 0 if options else len(list(model.parameters()))  # an ordinary step has all of them
    for found, left in world(2, released, how, options):
        assert_same_outcome(found, outcome(model, optimizer))
        assert left == [first, 0, 0, 0, 0, 0]


POLICY = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


def mixed_precision() -> Any:
    mesh = init_device_mesh("cpu", (4,))
    return trained(shard(Tiny(), mesh, mp_policy=POLICY), share_of(mesh))[0]


def mixed_precision_in_one_process(ranks: int) -> Any:
    """Each share forward and backward in bf16, the gradients added in float32, as the policy says."""
    model = Tiny()
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    for step in range(STEPS):
        for tokens in batch(step).chunk(ranks):
            low = {name: p.bfloat16() for name, p in model.named_parameters()}
            low["head.weight"] = low["embedding.weight"]
            loss = loss_of(lambda *given, low=low: functional_call(model, low, given), tokens, step)
            (loss / ranks).backward()
        quiet_step(optimizer)
        optimizer.zero_grad()
    return outcome(model, optimizer)


def test_mixed_precision() -> None:
    """As exact as float32: the shares are the same, so bf16 rounds the same numbers."""
    truth = mixed_precision_in_one_process(4)
    for found in world(4, mixed_precision):
        assert_same_outcome(found, truth)


def bf16_state() -> Any:
    mesh = init_device_mesh("cpu", (4,))
    return trained(shard(Tiny(), mesh), share_of(mesh), state_dtype=torch.bfloat16)[0]


def test_bf16_state() -> None:
    """Sums of another order round some momenta the other way, by 2⁻⁸: a float32 state is 1.9e-2 away."""
    truth = one_process(state_dtype=torch.bfloat16)
    for found in world(4, bf16_state):
        assert {momentum.dtype for momentum in found["momenta"].values()} == {torch.bfloat16}
        assert_same_outcome(found, truth, params=1e-3, momenta=2**-8)


# Hand-made layouts: each rank has the whole too, and steps it beside the shards.

MESH_1D, MESH_2D = (4,), (2, 2)
LAYOUTS: dict[str, Any] = {
    "uneven rows": (MESH_1D, (10, 3), [Shard(0)], [Shard(0)]),
    "empty shards": (MESH_1D, (2, 5), [Shard(0)], [Shard(0)]),
    "one element": (MESH_1D, (1,), [Shard(0)], [Shard(0)]),
    "uneven columns": (MESH_1D, (3, 7), [Shard(1)], [Shard(1)]),
    "replicated": (MESH_1D, (6, 2), [Replicate()], [Replicate()]),
    "scalar": (MESH_1D, (), [Replicate()], [Replicate()]),
    "gradient to be summed": (MESH_1D, (6, 2), [Replicate()], [Partial()]),
    "gradient to be summed and cut": (MESH_1D, (6, 2), [Shard(0)], [Partial()]),
    "gradient cut otherwise": (MESH_1D, (6, 9), [Shard(0)], [Shard(1)]),
    "gradient whole": (MESH_1D, (6, 9), [Shard(0)], [Replicate()]),
    "replicas of shards": (MESH_2D, (7, 3), [Replicate(), Shard(0)], [Replicate(), Shard(0)]),
    "shards of shards": (MESH_2D, (5, 7), [Shard(0), Shard(1)], [Shard(0), Shard(1)]),
    "summed and cut": (MESH_2D, (5, 7), [Shard(0), Shard(1)], [Partial(), Shard(1)]),
}


def one_element_is(value: float, gradient: torch.Tensor) -> torch.Tensor:
    return gradient.flatten().index_fill(0, torch.tensor(0), value).view_as(gradient)


#: What the gradient of a layout is, step by step.
KINDS = {
    "ordinary": lambda g, step: g,
    "zero at first": lambda g, step: g * (step > 0),
    "zero on most ranks": lambda g, step: one_element_is(step + 1.0, torch.zeros_like(g)),
    "NaN on one rank at first": lambda g, step: one_element_is(torch.nan, g) if step == 0 else g,
}


class DTensorOps(TorchDispatchMode):
    """Counts the operations that DTensor has to dispatch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(issubclass(kind, DTensor) for kind in types)
        return func(*args, **(kwargs or {}))


def spread(tensor: torch.Tensor, mesh: DeviceMesh, placements: list[Any]) -> DTensor:
    """The DTensor of a tensor that every rank has; a partial one has all of it on the last rank."""
    partial = [placed.is_partial() for placed in placements]
    start = [Replicate() if placed.is_partial() else placed for placed in placements]
    spread = distribute_tensor(tensor, mesh, start)
    last = all(mesh.get_local_rank(dim) == mesh.size(dim) - 1 for dim in range(mesh.ndim) if partial[dim])
    return DTensor.from_local(
        spread.to_local() * last if any(partial) else spread.to_local(),
        mesh, placements, shape=spread.shape, stride=spread.stride(), run_check=False,
    )  # fmt: skip


def step_beside_the_whole(options: dict[str, Any], dtype: torch.dtype) -> None:
    meshes = {shape: init_device_mesh("cpu", shape) for shape in (MESH_1D, MESH_2D)}
    generator = torch.Generator().manual_seed(0)
    cases = [(kind, layout) for kind in KINDS.values() for layout in LAYOUTS.values()]
    if options.get("split"):
        cases = [
            (kind, layout) for kind, layout in cases if layout[1] and layout[1][0] % options["split"] == 0
        ]
    plain, shared = [], []
    for _, (mesh, shape, placements, _) in cases:
        start = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        plain.append(nn.Parameter(start.clone()))
        shared.append(nn.Parameter(distribute_tensor(start, meshes[mesh], placements)))
    truth, optimizer = SGDSaI(plain, **options), SGDSaI(shared, **options)
    for step in range(4):
        for (kind, (mesh, shape, _, placements)), p, q in zip(cases, plain, shared, strict=True):
            gradient = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            p.grad = kind(gradient, step)
            q.grad = spread(p.grad, meshes[mesh], placements)
        alike = all(q.grad.placements == q.placements for q in shared)
        with CommDebugMode() as collectives, DTensorOps() as ops:
            quiet_step(optimizer)
        quiet_step(truth)
        if alike and all(s != UNLATCHED for q in shared for s in scales_of(optimizer, q)) and step > 1:
            assert collectives.get_total_counts() == 0
            assert ops.count == 0
        for p, q in zip(plain, shared, strict=True):
            assert scales_of(optimizer, q) == pytest.approx(scales_of(truth, p), rel=1e-9)
    # A momentum in 16 bits is rounded by bits that follow rows: a shard of columns takes others.
    near = {"rtol": 0.05, "atol": 5e-3} if "state_dtype" in options else {}
    for p, q in zip(plain, shared, strict=True):
        torch.testing.assert_close(whole(q), p.detach(), **near)
        if options.get("momentum") != 0:
            momentum = optimizer.state[q]["momentum_buffer"]
            assert momentum.placements == q.placements
            torch.testing.assert_close(whole(momentum), truth.state[p]["momentum_buffer"], **near)


def scales_of(optimizer: SGDSaI, param: nn.Parameter) -> list[float]:
    return [value for key, value in optimizer.state[param].items() if key.startswith("gsnr")]


EDGES = [
    ({}, torch.float32),
    ({"foreach": True, "weight_decay": 0.1}, torch.float32),
    ({"foreach": False, "fused": False, "maximize": True}, torch.float32),
    ({"blocks": "group"}, torch.float32),
    ({"split": 2}, torch.float32),
    ({"split": 3, "weight_decay": 0.1}, torch.float32),
    ({"unbiased": True, "measure_first": True}, torch.float32),
    ({"normalize": "rms"}, torch.float32),
    ({"momentum": 0.0, "normalize": False, "lr": 1e-3}, torch.float32),
    ({}, torch.bfloat16),
    ({"rounding": "kahan", "state_dtype": torch.bfloat16}, torch.bfloat16),
    ({}, torch.complex64),
]


def all_edges() -> None:
    for options, dtype in EDGES:
        step_beside_the_whole({"lr": 0.1, **options}, dtype)


def test_layouts_and_gradients_that_are_awkward() -> None:
    world(4, all_edges)


def rounded_stochastically(ranks: int) -> torch.Tensor:
    """A parameter after three steps; of several ranks, each has some of its rows."""
    generator = torch.Generator().manual_seed(0)
    value, *grads = (torch.randn(7, 500, generator=generator).bfloat16() for _ in range(4))
    mesh = init_device_mesh("cpu", (ranks,)) if ranks > 1 else None
    param = nn.Parameter(value if mesh is None else distribute_tensor(value, mesh, [Shard(0)]))
    optimizer = SGDSaI([param], lr=0.1, rounding="stochastic")
    for grad in grads:
        param.grad = grad if mesh is None else distribute_tensor(grad, mesh, [Shard(0)])
        optimizer.step()
    return param.detach() if mesh is None else param.full_tensor().detach()


def test_a_shard_is_rounded_as_that_part_of_the_whole() -> None:
    whole = rounded_stochastically(1)
    for of_rank in world(3, rounded_stochastically, 3):
        assert torch.equal(of_rank, whole)


def measured_again(on_ranks: bool) -> dict[str, Any]:
    """Scales are lost twice: by `measure_again`, after which momenta go on, and with the whole state."""
    model, share = Tiny(), slice(None)
    if on_ranks:
        mesh = init_device_mesh("cpu", (4,))
        model, share = shard(model, mesh), share_of(mesh)
    optimizer = SGDSaI(model.parameters(), **OPTIONS)
    train(model, optimizer, range(LATE + 2), share)
    optimizer.measure_again()
    train(model, optimizer, range(LATE + 2, LATE + 4), share)
    optimizer.state.clear()
    train(model, optimizer, range(LATE + 4, LATE + 6), share)
    given = torch.ones(16)
    if on_ranks:  # only the first rank's part is not 0
        given[4:] = 0
        given = distribute_tensor(given, mesh, [Shard(0)])
    else:
        given[4:] = 0
    optimizer.state.pop(model.norm.weight)
    optimizer.state[model.norm.weight]["momentum_buffer"] = given
    train(model, optimizer, range(LATE + 6, LATE + 8), share)
    return outcome(model, optimizer)


def test_measured_again() -> None:
    """On all ranks alike, where the momentum that goes on is zero on some of them."""
    truth = measured_again(on_ranks=False)
    for found in world(4, measured_again, True):
        assert_same_outcome(found, truth)
