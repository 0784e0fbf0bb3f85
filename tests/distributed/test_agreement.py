"""Ranks that share parameters, but measure others: an error on each of them, never a mix and never a hang."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import quiet_step
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from world import world

from sgd_sai import UNLATCHED, GSNRRecorder, SGDSaI, gradient_release, measure_scales
from sgd_sai.distributed.collectives import CAPACITY
from sgd_sai.gsnr import g_snr, measure


def gradient_of(name: str, shape: tuple[int, ...] = (8, 4)) -> torch.Tensor:
    """Of q's gradient most is at the end, on the last rank; p's has a mean."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(ord(name[0])))
    return numbers * torch.linspace(0.1, 3, shape[0])[:, None] if name == "q" else numbers + 1.0


def named(mesh: DeviceMesh, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, nn.Parameter]:
    """p and q of one shape, cut over the ranks, with their gradients."""
    params = {}
    for name, shape in (shapes or {"p": (8, 4), "q": (8, 4)}).items():
        params[name] = nn.Parameter(distribute_tensor(torch.ones(shape), mesh, [Shard(0)]))
        params[name].grad = distribute_tensor(gradient_of(name, shape), mesh, [Shard(0)])
    return params


def refused(step: Callable[[], Any]) -> str:
    """What a step says that raises on this rank."""
    try:
        step()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def in_another_order() -> list[str]:
    """As names out of a `set` come: each process has an order of its own."""
    params = named(init_device_mesh("cpu", (2,)))
    order = sorted(params, reverse=dist.get_rank() == 1)
    return [refused(SGDSaI([(name, params[name]) for name in order], lr=0.1).step)]


def without_names() -> list[str]:
    """Shapes tell them apart."""
    params = named(init_device_mesh("cpu", (2,)), {"p": (8, 4), "q": (6, 4)})
    order = sorted(params, reverse=dist.get_rank() == 1)
    return [refused(SGDSaI([params[name] for name in order], lr=0.1).step)]


def laid_out_otherwise() -> list[str]:
    """The local parts have one shape."""
    mesh = init_device_mesh("cpu", (2,))
    placed = [Shard(dist.get_rank())]
    param = nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, placed))
    param.grad = distribute_tensor(gradient_of("p", (4, 4)), mesh, placed)
    return [refused(SGDSaI([("p", param)], lr=0.1).step)]


def gradients_of(of_ranks: tuple[str, str]) -> str:
    """Each rank has gradients for these alone; the next step, in which both have both, is right."""
    params = named(init_device_mesh("cpu", (2,)))
    grads = {name: param.grad for name, param in params.items()}
    optimizer = SGDSaI(params.items(), lr=0.1)
    for name, param in params.items():
        param.grad = grads[name] if name in of_ranks[dist.get_rank()] else None
    message = refused(optimizer.step)
    assert all(torch.equal(param.to_local(), torch.ones(4, 4)) for param in params.values())
    for name, param in params.items():
        param.grad = grads[name]
    optimizer.step()
    assert_scales_of_the_whole(optimizer, params)
    return message


def assert_scales_of_the_whole(optimizer: SGDSaI, params: dict[str, nn.Parameter]) -> None:
    """Those of one process."""
    for name, param in params.items():
        [moments] = measure([[gradient_of(name, tuple(param.shape))]])
        assert optimizer.state[param]["gsnr"] == pytest.approx(g_snr(moments), rel=1e-12)


def one_has_fewer_parameters() -> list[str]:
    params = named(init_device_mesh("cpu", (2,)))
    if dist.get_rank() == 1:
        del params["q"]
    return [refused(SGDSaI(params.items(), lr=0.1).step)]


def tools_that_measure() -> list[str]:
    """The recorder, and scales that are measured before."""
    params = named(init_device_mesh("cpu", (2,)))
    order = sorted(params, reverse=dist.get_rank() == 1)
    recorder = GSNRRecorder([(name, params[name]) for name in order])
    model = nn.ParameterDict([(name, params[name]) for name in order])
    loss = sum((param * param.grad).sum() for param in params.values())
    return [refused(recorder.record), refused(lambda: measure_scales(model, loss.full_tensor()))]


def inside_backward() -> list[str]:
    """With gradient release each gradient is measured alone, when it is there."""
    model = nn.ParameterDict(named(init_device_mesh("cpu", (2,))))
    optimizer = SGDSaI(model.named_parameters(), lr=0.1, measure_first=True)
    release = gradient_release(model, optimizer)
    first = model["pq"[dist.get_rank()]]
    first.grad = None
    message = refused(lambda: first.sum().full_tensor().backward())
    release.remove()
    return [message]


P, Q = (f"parameter {name!r} of shape (8, 4), Shard(dim=0) on a mesh of 2" for name in "pq")
NONE = "none, in a first step"
REFUSED: dict[Any, tuple[str, str]] = {
    in_another_order: (P, Q),
    without_names: (
        "a tensor without a name of shape (8, 4), Shard(dim=0) on a mesh of 2",
        "a tensor without a name of shape (6, 4), Shard(dim=0) on a mesh of 2",
    ),
    laid_out_otherwise: (
        "parameter 'p' of shape (4, 4), Shard(dim=0) on a mesh of 2",
        "parameter 'p' of shape (4, 4), Shard(dim=1) on a mesh of 2",
    ),
    one_has_fewer_parameters: (Q, NONE),
    tools_that_measure: (P, Q),
    inside_backward: (P, Q),
}


@pytest.mark.parametrize("scenario", REFUSED, ids=lambda f: f.__name__)
def test_ranks_that_measure_others_are_told(scenario: Any) -> None:
    first, second = REFUSED[scenario]
    place = 2 if scenario is one_has_fewer_parameters else 1
    message = (
        f"; number {place} is on rank 0 {first}; on rank 1 {second}. Allowed: lists of the same parameters"
    )
    for said in world(2, scenario):
        assert all(message in each for each in said), said


@pytest.mark.parametrize(
    ("of_ranks", "place", "first", "second"),
    [(("p", "q"), 1, P, Q), (("pq", "p"), 2, Q, NONE), (("p", ""), 1, P, NONE), (("", "q"), 1, NONE, Q)],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_gradients_for_others_in_the_first_step(
    of_ranks: tuple[str, str], place: int, first: str, second: str
) -> None:
    for said in world(2, gradients_of, of_ranks):
        assert f"number {place} is on rank 0 {first}; on rank 1 {second}. Allowed" in said


def one_of_four(process_group: bool) -> str:
    """Rank 3 of a mesh of two dims has another order: rank 0, which shares nothing with it, is told, too."""
    mesh = init_device_mesh("cpu", (2, 2))
    params = []
    for name in ("p", "q") if dist.get_rank() != 3 else ("q", "p"):
        params.append((name, nn.Parameter(distribute_tensor(torch.ones(8, 4), mesh, [Shard(0), Shard(1)]))))
        params[-1][1].grad = distribute_tensor(gradient_of(name), mesh, [Shard(0), Shard(1)])
    return refused(SGDSaI(params, lr=0.1, process_group=dist.group.WORLD if process_group else None).step)


@pytest.mark.parametrize("process_group", [False, True])
def test_all_ranks_of_a_mesh_are_told(process_group: bool) -> None:
    assert len(found := world(4, one_of_four, process_group)) == 4
    assert all(
        "parameter 'q' of shape (8, 4), Shard(dim=0), Shard(dim=1) on a mesh of 2×2" in of for of in found
    )


def one_stage_of_two() -> str:
    """The ranks of the second stage disagree; those of the first wait for its largest G_snr."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))
    params = named(mesh["data"])
    order = sorted(params, reverse=dist.get_rank() == 3)
    pairs = [(name, params[name]) for name in order]
    return refused(SGDSaI(pairs, lr=0.1, process_group=dist.group.WORLD).step)


def test_other_stages_are_told() -> None:
    found = world(4, one_stage_of_two)
    assert all("on rank 2 parameter 'p'" in said and "on rank 3 parameter 'q'" in said for said in found[2:])
    assert all(said.startswith("process_group: its rank 2 has raised an error in this") for said in found[:2])


def fails_alone(how: str) -> str:
    """Rank 1 of a process group raises in its first step; then both step as if nothing had been."""
    alone = dist.get_rank() == 1

    def rule(moments: Any) -> float:
        return -1.0 if alone and how == "rule" and not mended else 2.0

    mended = False
    param = nn.Parameter(torch.ones(3))
    optimizer = SGDSaI([param], lr=0.1, scale=rule, process_group=dist.group.WORLD)
    param.grad = torch.ones(3).to_sparse() if alone and how == "sparse" else torch.ones(3)
    said = refused(optimizer.step)
    mended, param.grad = True, torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.9))
    return said


@pytest.mark.parametrize(
    ("how", "message"), [("rule", "scale: it gave -1.0"), ("sparse", "its gradient is sparse")]
)
def test_an_error_of_one_rank_of_a_process_group(how: str, message: str) -> None:
    first, second = world(2, fails_alone, how)
    assert first.startswith("process_group: its rank 1 has raised an error in this step")
    assert message in second


def fails_beside_a_shared_parameter(process_group: bool) -> str:
    """Rank 3 raises before it has measured what it shares with rank 2; the first stage shares nothing."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "data"))
    param = named(mesh["data"])["p"]
    own = nn.Parameter(torch.ones(3))
    group = dist.group.WORLD if process_group else None
    optimizer = SGDSaI([("p", param), ("own", own)], lr=0.1, process_group=group)
    own.grad = torch.ones(3).to_sparse() if dist.get_rank() == 3 else torch.ones(3)
    said = refused(optimizer.step)
    own.grad = torch.ones(3)
    optimizer.step()
    assert_scales_of_the_whole(optimizer, {"p": param})
    return said


@pytest.mark.parametrize("process_group", [False, True])
def test_an_error_of_one_rank_that_shares_parameters(process_group: bool) -> None:
    *stage, third, fourth = world(4, fails_beside_a_shared_parameter, process_group)
    assert f"on rank 2 {P}; on rank 3 an error, parameter 'own': its gradient is sparse" in third
    assert fourth.startswith("parameter 'own': its gradient is sparse")
    told = "process_group: its rank 2 has raised an error" if process_group else "nothing was raised"
    assert all(said.startswith(told) for said in stage)


def outside_the_mesh() -> None:
    """Ranks 2 and 3 have the parameter too, but nothing of it."""
    mesh = DeviceMesh("cpu", [0, 1])
    inside = dist.get_rank() < 2
    params = named(mesh)
    own = nn.Parameter(torch.ones(3))
    optimizer = SGDSaI([*params.items(), ("own", own)], lr=0.1)
    own.grad = torch.arange(3.0)
    for param in params.values():
        param.grad = param.grad if inside else None
    collectives = []
    for _ in range(2):
        with CommDebugMode() as comm:
            quiet_step(optimizer)
        collectives.append(comm.get_total_counts())
    assert collectives == [int(inside), 0]
    optimizer.load_state_dict(optimizer.state_dict())
    for param in params.values():
        param.grad = torch.zeros_like(param)  # as torch.distributed.checkpoint does
    quiet_step(optimizer)
    if inside:
        assert_scales_of_the_whole(optimizer, params)


def without_elements() -> None:
    """A parameter that will never have a scale is not waited for."""
    param = nn.Parameter(distribute_tensor(torch.ones(0, 4), init_device_mesh("cpu", (2,)), [Shard(0)]))
    own = nn.Parameter(torch.ones(3))
    optimizer = SGDSaI([param, own], lr=0.1)
    param.grad, own.grad = torch.zeros_like(param), torch.arange(3.0)
    with CommDebugMode() as comm:
        optimizer.step()
    assert comm.get_total_counts() == 0


def dry_run() -> None:
    """One process as a rank of eight, for its memory: a collective of this backend sends nothing."""
    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    params = named(init_device_mesh("cpu", (8,)))
    optimizer = SGDSaI(params.items(), lr=0.1)
    optimizer.step()
    assert all(optimizer.state[param]["gsnr"] > 0 for param in params.values())


def what_is_right() -> None:
    """Ranks own other plain tensors, begin without gradients, and have their meshes in another order."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    params = {**named(mesh["rows"]), **named(mesh["columns"], {"r": (8, 4)})}
    grads = {name: param.grad for name, param in params.items()}
    own = [(f"own.{i}", nn.Parameter(torch.ones(3))) for i in range(1 + dist.get_rank())]
    order = "pqr" if dist.get_rank() in (0, 3) else "rpq"
    optimizer = SGDSaI([*own, *((name, params[name]) for name in order)], lr=0.1, normalize=False)
    collectives, waits = [], []
    for step in range(6):
        for name, param in params.items():
            param.grad = [None, torch.zeros_like(grads[name]), grads[name].clone()][min(step, 2)]
        if step == 2 and mesh.get_local_rank("rows") == 1:
            params["p"].grad.to_local()[0, 0] = torch.nan
        for _, param in own:  # one of them has its scale before all others
            param.grad = torch.arange(3.0) if step == 0 and dist.get_rank() == 0 else None
        with CommDebugMode() as comm:
            quiet_step(optimizer)
        collectives.append(comm.get_total_counts())
        waits.append(optimizer.state[params["p"]].get("gsnr", UNLATCHED) == UNLATCHED)
    assert collectives == [2, 2, 2, 1, 0, 0]
    assert waits == [True, True, True, False, False, False]
    assert_scales_of_the_whole(optimizer, params)


def many() -> None:
    """More blocks than one all-reduce has rows, one of them late."""
    mesh = init_device_mesh("cpu", (2,))
    shapes = {f"{n}": (8, 4) for n in range(CAPACITY + 2)}
    params = named(mesh, shapes)
    late = params["0"].grad
    params["0"].grad = None
    optimizer = SGDSaI(params.items(), lr=0.1)
    collectives = []
    for step in range(3):
        if step:
            params["0"].grad = late
        with CommDebugMode() as comm:
            quiet_step(optimizer)
        collectives.append(comm.get_total_counts())
    assert collectives == [2, 1, 0]
    assert_scales_of_the_whole(optimizer, params)
    order = sorted(params, reverse=dist.get_rank() == 1)
    assert "number 1 is on rank 0" in refused(SGDSaI([(name, params[name]) for name in order]).step)


@pytest.mark.parametrize(
    ("scenario", "ranks"),
    [(what_is_right, 4), (many, 2), (outside_the_mesh, 4), (without_elements, 2), (dry_run, 1)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_right_goes_on(scenario: Any, ranks: int) -> None:
    world(ranks, scenario)
