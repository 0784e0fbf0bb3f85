"""torch.compile of the step: every option with every other that it goes with, beside the plain step."""

from __future__ import annotations

import copy
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.optim import lr_scheduler

from optimizer_info import WAYS, give_gradients
from sgd_sai import Moments, SGDSaI, gradient_release
from sgd_sai.options import OPTIONS
from sgd_sai.rounding import exactly

pytestmark = pytest.mark.skipif(
    not torch._dynamo.is_dynamo_supported(), reason="torch.compile does not run on this Python"
)

NAMES = ["matrix", "convolution", "vector"]


def by_norm(moments: Moments) -> float:
    return 1.0 + moments.norm


#: What is combined: a factor, and its values by their names in a test's id. The first is the default.
FACTORS: dict[str, dict[str, Any]] = {
    "way": WAYS,
    "dtype": {str(d)[6:]: d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
    | {"complex64": torch.complex64},
    "lr": {"float": 0.05, "tensor": torch.tensor(0.05)},
    "momentum": {"0.9": 0.9, "0": 0.0},
    "eps": {"1e-8": 1e-8, "0": 0.0},
    "weight_decay": {"0": 0.0, "0.1": 0.1},
    "maximize": {"no": False, "yes": True},
    "capturable": {"no": False, "yes": True},
    "normalize": {"yes": True, "no": False, "rms": "rms"},
    "unbiased": {"no": False, "yes": True},
    "measure_first": {"no": False, "yes": True},
    "scale": {
        "gsnr": "gsnr",
        "sqrt_d": "sqrt_d",
        "callable": by_norm,
        "given": {name: 1.0 + place for place, name in enumerate(NAMES)},
    },
    "blocks": {"tensor": "tensor", "group": "group"},
    "split": {"1": 1, "2": 2},
    "state_dtype": {"none": None}
    | {str(d)[6:]: d for d in (torch.bfloat16, torch.float16, torch.float64)}
    | {"8bit": "8bit"},
    "rounding": {"nearest": "nearest", "stochastic": "stochastic", "kahan": "kahan"},
    "backend": {"eager": "eager", "aot_eager": "aot_eager"},
}

EXACTLY = {"rtol": 0.0, "atol": 0.0}

Value = tuple[str, str]
Case = dict[str, str]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A matrix that is large enough for 8 bits, a convolution in another memory order, and a vector."""
    generator = torch.Generator().manual_seed(0)
    params = [
        nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in ((24, 256), (8, 30, 5, 4), (6,))
    ]
    params[1].data = params[1].data.to(memory_format=torch.channels_last)
    return params


def made(case: Case) -> tuple[list[torch.Tensor], SGDSaI]:
    """Parameters and an optimizer; factors that the case leaves out have their defaults."""
    given = {name: copy.copy(values[case[name]]) for name, values in FACTORS.items() if name in case}
    way = given.pop("way", {})
    given.pop("backend", None)
    params: list[torch.Tensor] = [*parameters(given.pop("dtype", torch.float32))]
    if "differentiable" in way:
        params = [param.clone() for param in params]  # no leaves
    return params, SGDSaI(zip(NAMES, params, strict=True), **way, **given)


@cache
def refusal(one: Value, other: Value) -> str | None:
    """Why two values do not go together; None if they do."""
    try:
        made(dict([one, other]))
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def pairs_of(case: Case) -> Iterator[tuple[Value, Value]]:
    return itertools.combinations([(name, case[name]) for name in FACTORS if name in case], 2)


def every_pair() -> Iterator[tuple[Value, Value]]:
    for (one, values), (other, others) in itertools.combinations(FACTORS.items(), 2):
        for pair in itertools.product(values, others):
            yield (one, pair[0]), (other, pair[1])


@cache
def cases() -> list[Case]:
    """Few cases in which every two values meet that go together, found greedily."""
    found: list[Case] = []
    left = dict.fromkeys(pair for pair in every_pair() if refusal(*pair) is None)
    while left:
        case = dict(next(iter(left)))
        for name, values in FACTORS.items():
            if name not in case:
                fits = [{**case, name: value} for value in values]
                fits = [one for one in fits if all(refusal(*pair) is None for pair in pairs_of(one))]
                case = max(fits, key=lambda one: sum(pair in left for pair in pairs_of(one)))
        for pair in pairs_of(case):
            left.pop(pair, None)
        found.append(case)
    return found


def described(case: Case) -> str:
    """The values that are no defaults."""
    other = [f"{name}={value}" for name, value in case.items() if value != next(iter(FACTORS[name]))]
    return " ".join(other) or "defaults"


def compiled(step: Callable[..., Any], backend: str = "eager") -> Callable[..., Any]:
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(step, backend=backend)


def graphs() -> int:
    """How many were compiled since `compiled` was called.

    One whose tracing begins anew, as the aot backends have it for some numbers, counts once.
    """
    return counters["stats"]["unique_graphs"]


def side_by_side(
    one: SGDSaI, params: list[Any], other: SGDSaI, others: list[Any], steps: int = 5, backend: str = "eager"
) -> None:
    """Steps of both on the same fresh gradients; the step of the other is compiled."""
    step = compiled(other.step, backend)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        for number in range(steps):
            give_gradients(params, number)
            give_gradients(others, number)
            one.step()
            step()


@pytest.mark.parametrize("case", cases(), ids=described)
def test_equals_the_step_that_is_not_compiled(case: Case) -> None:
    """One graph for all steps.

    Bit for bit where both are the for-loop's arithmetic. Else the plain step is the fused kernel's, or that
    of lists, and rounding differs in the last bits: the tolerances are torch's for the dtype.
    """
    (params, one), (others, other) = made(case), made(case)
    side_by_side(one, params, other, others, backend=case["backend"])
    assert graphs() == 1
    stochastic = (case["rounding"], case["dtype"]) == ("stochastic", "bfloat16")
    starts = parameters(FACTORS["dtype"][case["dtype"]])
    for p, q, start in zip(params, others, starts, strict=True):
        assert not torch.equal(p, start)
        a, b = one.state[p], other.state[q]
        same = stochastic or "compensation" in a or case["way"] == "differentiable"
        torch.testing.assert_close(q.detach(), p.detach(), **(EXACTLY if same else {}))
        exactly = EXACTLY if same or "momentum_absmax" in a else {}
        assert a.keys() == b.keys()
        for key, value in a.items():
            if not isinstance(value, torch.Tensor):
                assert b[key] == value
            elif value.dtype != torch.int8:  # codes of a momentum one bit off may be neighbours
                # A momentum of float64 is kept wider than it is computed.
                wide = torch.promote_types(p.dtype, torch.float32)
                dtype = min(value.dtype, wide, key=lambda dtype: dtype.itemsize)
                torch.testing.assert_close(b[key].detach().to(dtype), value.detach().to(dtype), **exactly)


def test_every_option_is_combined() -> None:
    ways = {name for way in WAYS.values() for name in way}
    assert set(OPTIONS) == set(FACTORS) - {"way", "dtype", "backend"} | ways


def test_what_does_not_go_together_is_refused_in_a_line_that_names_an_option_of_the_two() -> None:
    refused = [(pair, why) for pair in every_pair() if (why := refusal(*pair)) is not None]
    assert len(refused) > 10
    for pair, why in refused:
        options = {name for name, _ in pair} | {name for _, value in pair for name in WAYS.get(value, {})}
        assert re.match(r"(\w+): given ", why)[1] in options
        assert "\n" not in why


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float lr", "tensor lr"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"normalize": False}], ids=str)
def test_compiles_once(lr: float | torch.Tensor, options: dict[str, Any]) -> None:
    """100 steps of a changing lr, one compilation, the same parameters as the for-loop."""
    params, others = parameters(), parameters()
    one = SGDSaI(params, lr=0.1, weight_decay=0.1, **WAYS["for-loop"], **options)
    two = SGDSaI(others, lr=copy.copy(lr), weight_decay=0.1, **options)
    step = compiled(two.step)
    for i in range(100):
        one.param_groups[0]["lr"] = value = 0.01 / (i + 1)
        if isinstance(lr, float):
            two.param_groups[0]["lr"] = value
        else:
            two.param_groups[0]["lr"].fill_(value)
        give_gradients(params, i)
        give_gradients(others, i)
        one.step()
        step()
    assert graphs() == 1
    torch.testing.assert_close(others, params)


@pytest.mark.parametrize(
    "lr",
    [torch.tensor([0.1]), torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor(0.1, dtype=torch.float64)],
    ids=["one dimension", "bfloat16", "float64"],
)
def test_a_tensor_lr_of_another_kind(lr: torch.Tensor) -> None:
    params, others = parameters(), parameters()
    one, two = SGDSaI(params, lr=lr.item(), weight_decay=0.1), SGDSaI(others, lr=lr, weight_decay=0.1)
    side_by_side(one, params, two, others)
    assert graphs() == 1
    torch.testing.assert_close(others, params)


def test_a_changing_momentum() -> None:
    """OneCycle's: a second compilation makes it a variable, as for torch's SGD, and there is no third."""
    params = parameters()
    optimizer = SGDSaI(params, lr=0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=31)
    step = compiled(optimizer.step)
    for i in range(30):
        give_gradients(params, i)
        step()
        scheduler.step()
    assert graphs() == 2


def test_groups_of_different_options_and_dtypes_are_one_graph() -> None:
    def build() -> tuple[list[nn.Parameter], SGDSaI]:
        wide, narrow, pairs = (
            parameters(dtype) for dtype in (torch.float32, torch.bfloat16, torch.complex64)
        )
        special = {"momentum": 0.0, "weight_decay": 0.1, "lr": torch.tensor(0.2), "rounding": "kahan"}
        groups = [{"params": wide + pairs}, {"params": narrow, **special}]
        return wide + narrow + pairs, SGDSaI(groups, lr=0.1)

    (params, one), (others, two) = build(), build()
    side_by_side(one, params, two, others)
    assert graphs() == 1
    torch.testing.assert_close(others, params)


def test_gradients_that_come_late_or_not_at_all() -> None:
    """Other blocks move: another graph for each set of them, and the same parameters."""
    params, others = (
        [*parameters(), nn.Parameter(torch.empty(0, 3))],
        [*parameters(), nn.Parameter(torch.empty(0, 3))],
    )
    one, two = SGDSaI(params, weight_decay=0.1), SGDSaI(others, weight_decay=0.1)
    step = compiled(two.step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of those without a scale after the first step
        for number in range(7):
            for of, move in ((params, one.step), (others, step)):
                give_gradients(of, number)
                if number < 2:
                    of[0].grad = None
                if number < 4:
                    of[2].grad.zero_()
                if number == 5:
                    of[1].grad.fill_(torch.nan)
                    of[1].grad = None
                move()
    assert 2 <= graphs() <= 4
    torch.testing.assert_close(others, params)


def test_a_loaded_state_goes_on_in_the_same_graph() -> None:
    params, others = parameters(torch.bfloat16), parameters(torch.bfloat16)
    options = {"state_dtype": "8bit", "rounding": "stochastic"}
    one, two = SGDSaI(params, **options), SGDSaI(others, **options)
    step = compiled(two.step)
    for number in range(6):
        give_gradients(params, number)
        give_gradients(others, number)
        one.step()
        step()
        if number == 2:
            two.load_state_dict(copy.deepcopy(two.state_dict()))
    assert graphs() == 1
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_hooks_run_at_every_step() -> None:
    params = parameters()
    optimizer = SGDSaI(params)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    step = compiled(optimizer.step)
    for number in range(3):
        give_gradients(params, number)
        step()
    assert calls == ["pre", "post"] * 3
    assert graphs() == 1


def network() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    return model, [torch.randn(16, 6) for _ in range(5)]


@pytest.mark.parametrize("closure", [False, True], ids=["train step", "closure"])
def test_a_compiled_train_step(closure: bool) -> None:
    """Forward, backward and step in one compiled function, or in the closure of a compiled step."""
    results = []
    for compiling in (False, True):
        model, batches = network()
        optimizer = SGDSaI(model.parameters(), weight_decay=0.1)

        def loss(x: torch.Tensor, model: nn.Module = model, optimizer: SGDSaI = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            of_batch = model(x).square().mean()
            of_batch.backward()
            return of_batch

        def train(x: torch.Tensor, loss: Any = loss, optimizer: SGDSaI = optimizer) -> torch.Tensor:
            of_batch = loss(x)
            optimizer.step()
            return of_batch

        def by_closure(x: torch.Tensor, loss: Any = loss, optimizer: SGDSaI = optimizer) -> torch.Tensor:
            return optimizer.step(lambda: loss(x))

        function = by_closure if closure else train
        function = compiled(function, "aot_eager") if compiling else function
        results.append([[function(x).detach() for x in batches], [p.detach() for p in model.parameters()]])
        if compiling:
            assert graphs() >= 2
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_derivatives_through_a_compiled_step(backend: str) -> None:
    """Of lr and of the parameters before the steps: those of the step that is not compiled."""
    found = []
    for compiling in (False, True):
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        leaves = parameters()
        params = [leaf.clone() for leaf in leaves]
        optimizer = SGDSaI(params, lr=lr, differentiable=True)
        step = compiled(optimizer.step, backend) if compiling else optimizer.step
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            for number in range(3):
                give_gradients(params, number)
                step()
        sum(param.square().sum() for param in params).backward()
        found.append([lr.grad, *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(found[1], found[0])
    assert found[0][0] != 0


def test_errors_are_those_of_the_step_that_is_not_compiled() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    step = compiled(SGDSaI(embedding.parameters()).step)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(
        ValueError, match=r"^parameter 0 of its group, .*: its gradient is sparse .*; allowed: "
    ):
        step()
    leaves = parameters()
    step = compiled(SGDSaI(leaves, differentiable=True).step)
    give_gradients(leaves, 0)
    with pytest.raises(
        ValueError, match=r"^differentiable: given True for parameter 0 .* a leaf .*; allowed: "
    ):
        step()


def test_a_process_group_and_dtensors() -> None:
    """Of one rank; the compiled step is that of plain parameters."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        plain = parameters()
        spread = [nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])) for param in parameters()]
        one = SGDSaI(plain, weight_decay=0.1)
        two = SGDSaI(spread, weight_decay=0.1, process_group=dist.group.WORLD)
        step = compiled(two.step)
        for number in range(4):
            give_gradients(plain, number)
            for p, q in zip(plain, spread, strict=True):
                q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
            one.step()
            step()
        assert graphs() == 1
        torch.testing.assert_close([q.full_tensor().detach() for q in spread], [p.detach() for p in plain])
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("what", "measure_first"),
    [
        ("model", False),
        ("model", True),
        ("model and step", False),
        ("model and step", True),
        ("backward", False),
    ],
)
def test_gradient_release_of_a_compiled_model(what: str, measure_first: bool) -> None:
    """The steps inside backward, and those of `step`, are what they are without the compiler, bit for bit."""
    results = []
    for compiling in (False, True):
        model, batches = network()
        optimizer = SGDSaI(model.parameters(), weight_decay=0.1, measure_first=measure_first)
        gradient_release(model, optimizer)
        step: Callable[..., Any] = optimizer.step
        forward: Callable[..., Any] = model
        if compiling:
            forward = compiled(model, "aot_eager")
            step = torch.compile(step, backend="eager") if what == "model and step" else step

        def backward(x: torch.Tensor, forward: Callable[..., Any] = forward) -> None:
            forward(x).square().mean().backward()

        traced = compiling and what == "backward"
        for x in batches:
            with torch._dynamo.config.patch(compiled_autograd=traced):
                (torch.compile(backward, backend="eager") if traced else backward)(x)
            step()
            optimizer.zero_grad()
        if compiling:
            assert graphs() >= 1
        results.append([param.detach() for param in model.parameters()])
    torch.testing.assert_close(results[1], results[0], rtol=0.0, atol=0.0)


INDUCTOR: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "defaults": (torch.float32, {}),
    "split, bfloat16 momentum": (torch.float32, {"split": 2, "state_dtype": torch.bfloat16}),
    "8 bits, stochastic": (torch.bfloat16, {"state_dtype": "8bit", "rounding": "stochastic"}),
    "kahan": (torch.bfloat16, {"rounding": "kahan"}),
    "kahan of float16": (torch.float16, {"rounding": "kahan"}),
}


@pytest.mark.parametrize(("dtype", "options"), [*INDUCTOR.values()], ids=[*INDUCTOR])
def test_inductor(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """The compiler that users get: the kernels that it writes agree with the for-loop.

    With compensation θ is what it is together with that: its last bit may go up in one and down in the other.
    """
    params, others = ([nn.Parameter(parameters()[0].detach().to(dtype))] for _ in range(2))
    one = SGDSaI(params, weight_decay=0.1, **WAYS["for-loop"], **options)
    two = SGDSaI(others, weight_decay=0.1, **options)
    side_by_side(one, params, two, others, steps=3, backend="inductor")
    assert graphs() == 1
    if "compensation" not in one.state[params[0]]:
        torch.testing.assert_close(others, params)
        return
    lost = [one.state[params[0]]["compensation"], two.state[others[0]]["compensation"]]
    assert lost[0].any()
    whole = [exactly(p.detach(), c) for p, c in zip((params[0], others[0]), lost, strict=True)]
    torch.testing.assert_close(whole[1], whole[0], rtol=1e-5, atol=2e-5)
    assert (lost[1] != lost[0]).float().mean() < 0.05
