"""What torch.optim's users expect of an optimizer, and what PyTorch's own suite checks of its own."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from optimizer_info import INFO, INPUTS, WAYS, Watch, give_gradients, parameters
from sgd_sai import SGDSaI

FAST = [way for way in WAYS if way != "for-loop"]


def train(params: list[nn.Parameter], steps: int = 4, first: int = 0, **kwargs: Any) -> SGDSaI:
    optimizer = SGDSaI(params, **kwargs)
    with torch.set_grad_enabled(kwargs.get("differentiable", False)):
        for step in range(first, first + steps):
            give_gradients(params, step)
            optimizer.step()
    return optimizer


def copies(params: list[nn.Parameter], way: str) -> list[nn.Parameter]:
    """Leaves, or for a differentiable step what is no leaf."""
    return [p.clone() if way == "differentiable" else nn.Parameter(p.detach().clone()) for p in params]


def test_is_described_as_pytorch_describes_its_own() -> None:
    assert INFO.name == "SGDSaI"
    assert {given.desc for given in INFO.optim_inputs_func("cpu")} == set(INPUTS)
    assert set(INFO.supported_impls) <= set(WAYS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("given", INPUTS)
def test_goes_the_right_way(way: str, given: str) -> None:
    """The loss of a linear regression falls, or rises with maximize."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 5), torch.randn(40, 3)
    weight, bias = torch.randn(3, 5, requires_grad=True), torch.randn(3, requires_grad=True)
    leaves = [weight, bias]
    params = [weight.clone(), bias.clone()] if way == "differentiable" else leaves
    kwargs = {**INPUTS[given], **WAYS[way]}
    if "lr" not in kwargs:
        kwargs["lr"] = 0.02
    optimizer = SGDSaI(params, **kwargs)
    losses = []
    for _ in range(30):
        with torch.enable_grad():
            used = [p.detach().requires_grad_() for p in params] if way == "differentiable" else params
            loss = nn.functional.mse_loss(nn.functional.linear(x, *used), y)
            for p, g in zip(params, torch.autograd.grad(loss, used), strict=True):
                p.grad = g
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] > losses[0] if kwargs.get("maximize") else losses[-1] < 0.9 * losses[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("way", FAST)
@pytest.mark.parametrize("given", INPUTS)
def test_equals_the_for_loop(way: str, given: str, dtype: torch.dtype) -> None:
    start = parameters(dtype)
    expected, actual = copies(start, "for-loop"), copies(start, way)
    one = train(expected, **INPUTS[given], **WAYS["for-loop"])
    two = train(actual, **INPUTS[given], **WAYS[way])
    torch.testing.assert_close([p.detach() for p in actual], [p.detach() for p in expected])
    for p, q in zip(expected, actual, strict=True):
        a, b = one.state[p], two.state[q]
        assert a.keys() == b.keys()
        assert a["gsnr"] == b["gsnr"]
        if "momentum_buffer" in a:
            torch.testing.assert_close(b["momentum_buffer"].detach(), a["momentum_buffer"])


@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
def test_tensor_lr_is_read_at_every_step(way: str) -> None:
    start = parameters()
    a, b = copies(start, way), copies(start, way)
    one, two = SGDSaI(a, lr=0.1, **WAYS[way]), SGDSaI(b, lr=torch.tensor(0.1), **WAYS[way])
    for step in range(4):
        give_gradients(a, step)
        give_gradients(b, step)
        one.param_groups[0]["lr"] = 0.1 / (step + 1)
        two.param_groups[0]["lr"].fill_(0.1 / (step + 1))
        one.step()
        two.step()
    torch.testing.assert_close(b, a)


@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
@pytest.mark.parametrize(
    ("of_param", "of_lr", "error"),
    [(torch.float32, torch.bfloat16, 1e-7), (torch.float64, torch.float32, 1e-15)],
    ids=["bfloat16 lr", "float32 lr"],
)
def test_a_tensor_lr_of_few_bits_keeps_the_decay_exact(
    way: str, of_param: torch.dtype, of_lr: torch.dtype, error: float
) -> None:
    """1 − λη in bfloat16 would be 1, and in float32 3e-8 off."""
    p, q = (nn.Parameter(torch.ones(3, dtype=of_param)) for _ in range(2))
    lr = torch.tensor(0.01, dtype=of_lr)
    one = SGDSaI([p], lr=lr, weight_decay=0.1, **WAYS[way])
    two = SGDSaI([q], lr=lr.item(), weight_decay=0.1)
    for each, of in ((one, p), (two, q)):
        of.grad = torch.ones_like(of)
        each.step()
    torch.testing.assert_close(p, q, rtol=0, atol=error)


@pytest.mark.parametrize("way", WAYS)
def test_groups_of_mixed_dtypes_and_missing_zero_and_empty_gradients(way: str) -> None:
    def run(of_way: str) -> list[torch.Tensor]:
        start = parameters() + parameters(torch.bfloat16, 1) + parameters(torch.float64, 2)
        params = copies([*start, nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.ones(5))], of_way)
        optimizer = SGDSaI(params, lr=0.1, weight_decay=0.1, **WAYS[of_way])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the one whose first gradients are zeros
            for step in range(3):
                give_gradients(params, step)
                params[0].grad = None if step == 1 else params[0].grad
                params[-1].grad = torch.zeros(5) if step < 2 else params[-1].grad
                with torch.no_grad():
                    optimizer.step()
        return [p.detach() for p in params]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.testing.assert_close(run(way), run("for-loop"))


@pytest.mark.filterwarnings("ignore:SGDSaI. eps")
def test_options_differ_between_groups() -> None:
    """Each group's lr, momentum, eps, decay and rule hold for it alone: three groups equal three runs."""
    options = [
        {"lr": 0.1, "momentum": 0.0, "eps": 0.1},
        {"lr": torch.tensor(0.02), "momentum": 0.8, "weight_decay": 0.2, "scale": "sqrt_d"},
        {"lr": 0.3, "maximize": True, "eps": 0.0, "unbiased": True},
    ]
    together = [parameters(seed=s) for s in range(3)]
    apart = [copies(params, "default") for params in together]
    every = [p for params in together for p in params]
    optimizer = SGDSaI([{"params": p, **o} for p, o in zip(together, options, strict=True)], normalize=False)
    singles = [SGDSaI(p, **o, normalize=False) for p, o in zip(apart, options, strict=True)]
    for step in range(3):
        give_gradients(every, step)
        optimizer.step()
        for p, q in zip(every, [q for params in apart for q in params], strict=True):
            q.grad = p.grad.clone()
        for single in singles:
            single.step()
    torch.testing.assert_close(together, apart)


def test_add_param_group_mid_run() -> None:
    """The group's blocks latch at their first step, against the maximum recorded at the first one."""
    first, late = parameters(), parameters(seed=1)
    optimizer = train(first, 3, lr=0.1)
    largest = optimizer.param_groups[0]["gsnr_max"]
    optimizer.add_param_group({"params": late, "lr": 0.5, "momentum": 0.0})
    before = [p.detach().clone() for p in late]
    give_gradients(late, 7)
    optimizer.step()
    for p, b in zip(late, before, strict=True):
        scale = min(optimizer.state[p]["gsnr"] / largest, 1.0)
        torch.testing.assert_close(p.detach(), b - 0.5 * scale * p.grad)
    assert optimizer.param_groups[1]["gsnr_max"] == largest


def test_named_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = SGDSaI(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"][0] == "0.weight"
    SGDSaI(model.named_parameters()).load_state_dict(saved)


def test_zero_grad() -> None:
    params = parameters()
    optimizer = train(params, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)


def test_hooks() -> None:
    """Each kind of hook runs, in its place, and may replace what it is given."""
    calls: list[str] = []
    params = parameters()
    optimizer = SGDSaI(params)

    def note(what: str) -> Any:
        return lambda *_: calls.append(what)

    optimizer.register_step_pre_hook(note("step pre"))
    optimizer.register_step_post_hook(note("step post"))
    optimizer.register_state_dict_pre_hook(note("save pre"))
    optimizer.register_state_dict_post_hook(note("save post"))
    optimizer.register_load_state_dict_pre_hook(note("load pre"))
    optimizer.register_load_state_dict_post_hook(note("load post"))
    give_gradients(params, 0)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["step pre", "step post", "save pre", "save post", "load pre", "load post"]

    def halve(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        state["param_groups"][0]["lr"] = 0.5
        return state

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_hooks_of_all_optimizers() -> None:
    """Those that profilers register, for every optimizer there is."""
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("post")),
    ]
    try:
        train(parameters(), 2)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["pre", "post"] * 2


@pytest.mark.parametrize("way", ["for-loop", "foreach", "fused", "default"])
def test_a_tensor_lr_of_one_dimension(way: str) -> None:
    start = parameters()
    one, two = (copies(start, way) for _ in range(2))
    train(one, lr=0.05, **WAYS[way])
    train(two, lr=torch.tensor([0.05]), **WAYS[way])
    torch.testing.assert_close(two, one)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_copies_mid_run_continue_alike(clone: Any) -> None:
    params = parameters()
    optimizer = train(params, 2, lr=0.1, weight_decay=0.1)
    other = clone(optimizer)
    others = other.param_groups[0]["params"]
    assert all(p is not q and torch.equal(p, q) for p, q in zip(params, others, strict=True))
    for step in range(2, 5):
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (t + 1)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 5)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.ConstantLR(o, 0.5, 3)]
    ),
}


def test_every_scheduler_is_tested() -> None:
    assert set(SCHEDULERS) == set(lr_scheduler.__all__) - {"LRScheduler"}


@pytest.mark.parametrize("tensor", [False, True], ids=["float lr", "tensor lr"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str, tensor: bool) -> None:
    """Each moves lr (and OneCycle and Cyclic momentum) as it does for torch's SGD, and the step takes it."""
    # Both of one kind: the SequentialLR of torch 2.6 treats a tensor in another way than a float.
    lrs = [torch.tensor(0.1) if tensor else 0.1 for _ in range(2)]
    params, others = parameters(), parameters()
    optimizer, sgd = SGDSaI(params, lr=lrs[0]), torch.optim.SGD(parameters(), lr=lrs[1], momentum=0.9)
    by_hand = SGDSaI(others, lr=0.1, **WAYS["for-loop"])
    schedulers = SCHEDULERS[name](optimizer), SCHEDULERS[name](sgd)
    for step in range(8):
        group, like = optimizer.param_groups[0], sgd.param_groups[0]
        assert float(group["lr"]) == pytest.approx(float(like["lr"]), rel=1e-6)
        assert group["momentum"] == pytest.approx(like["momentum"])
        by_hand.param_groups[0].update(lr=float(group["lr"]), momentum=group["momentum"])
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        sgd.step()
        by_hand.step()
        for scheduler in schedulers:
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    torch.testing.assert_close(params, others)


def test_onecycle_moves_momentum() -> None:
    optimizer = SGDSaI(parameters())
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, base_momentum=0.85, max_momentum=0.95)
    seen = []
    for _ in range(9):
        seen.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert max(seen) == pytest.approx(0.95)
    assert min(seen) < 0.86


def test_swa_and_ema() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    swa = swa_utils.AveragedModel(model)
    ema = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = SGDSaI(model.parameters(), lr=0.1)
    scheduler = swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    mean, moving = torch.zeros(2, 4), model.weight.detach().clone()
    for step in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        swa.update_parameters(model)
        ema.update_parameters(model)
        mean += model.weight.detach() / 4
        moving = model.weight.detach().clone() if step == 0 else 0.5 * moving + 0.5 * model.weight.detach()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    torch.testing.assert_close(swa.module.weight.detach(), mean)
    torch.testing.assert_close(ema.module.weight.detach(), moving)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"weight_decay": 0.1, "maximize": True}], ids=str)
def test_differentiable_step_has_the_right_derivatives(options: dict[str, Any]) -> None:
    """Against finite differences in θ, g, m and lr; the scale, once latched, is a constant."""

    def step(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
        p = p.clone()
        p.grad = g
        optimizer = SGDSaI([p], lr=lr, differentiable=True, normalize=False, **options)
        optimizer.state[p] = {"gsnr": 1.7} | (
            {} if options.get("momentum") == 0 else {"momentum_buffer": m.clone()}
        )
        optimizer.step()
        return p

    torch.manual_seed(0)
    given = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(step, (*given, lr))


def test_differentiable_step_of_a_leaf_is_refused_by_name_and_nothing_moves() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = SGDSaI([("bias", p)], differentiable=True)
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"^differentiable: given True for .*'bias', a leaf .*; allowed: "):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("way", ["for-loop", "foreach"])
def test_the_host_waits_for_no_device_after_the_latch(way: str) -> None:
    """A step with a tensor lr reads nothing back: what lets a GPU run ahead, and a CUDA graph capture it."""
    params = parameters()
    optimizer = SGDSaI(params, lr=torch.tensor(0.1), weight_decay=0.1, capturable=True, **WAYS[way])
    waits = []
    for step in range(3):
        give_gradients(params, step)
        with Watch() as watch:
            optimizer.step()
        waits.append(watch.waits)
    assert waits[1:] == [0, 0]


@pytest.mark.parametrize("way", ["foreach", "default"])
def test_peak_memory_of_a_step(way: str) -> None:
    """No model-sized temporary: a model five times as large costs a step no more, two buckets of 8 MiB."""
    peaks = []
    for count in (4, 20):
        params = [nn.Parameter(torch.randn(1200, 1000)) for _ in range(count - 3)]
        params.append(nn.Parameter(torch.randn(3000, 1200)))
        optimizer = SGDSaI(params, weight_decay=0.1, **WAYS[way])
        for step in range(2):
            give_gradients(params, step)
            with Watch() as watch:
                optimizer.step()
            if step == 1:
                peaks.append(watch.peak)
        model = sum(p.numel() * 4 for p in params)
    assert peaks[0] <= 16 << 20
    assert peaks[1] <= max(peaks[0], 16 << 20)
    if way == "default":
        assert peaks[1] <= 0.01 * 3 * model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foreach": True, "fused": True}, "fused: given True with foreach=True"),
        ({"fused": True, "differentiable": True}, "fused: given True with differentiable=True"),
        ({"foreach": True, "differentiable": True}, "foreach: given True with differentiable=True"),
    ],
)
def test_ways_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGDSaI(parameters(), **options)


def test_fused_where_there_is_no_kernel() -> None:
    with pytest.raises(
        ValueError, match=r"fused: given True for parameter 0 .* on meta; allowed: on cpu and cuda"
    ):
        SGDSaI([nn.Parameter(torch.empty(2, device="meta"))], fused=True)


def test_ways_are_all_there() -> None:
    for way, name in itertools.product(WAYS, ("foreach", "fused", "capturable", "differentiable")):
        assert name in SGDSaI(parameters(), **WAYS[way]).defaults


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("size", [8, 200])
@pytest.mark.parametrize("way", ["for-loop", "foreach", "fused", "default"])
def test_autograd_notices_what_a_step_has_changed(way: str, size: int, options: dict[str, Any]) -> None:
    """A second backward through the old graph is an error, as with torch's SGD, and not a wrong gradient."""
    one, two = (nn.Parameter(torch.randn(size, size)) for _ in range(2))
    optimizer = SGDSaI([one, two], lr=0.1, **options, **WAYS[way])
    for _ in range(2):
        optimizer.zero_grad()
        loss = (one @ two).square().sum()
        loss.backward(retain_graph=True)
        versions = one._version, two._version
        optimizer.step()
        assert one._version > versions[0]
        assert two._version > versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
