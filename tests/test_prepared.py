"""A prepared step is the ordinary one, bit for bit, and gives way to it when something changes."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sgd_sai import SGDSaI, gradient_release
from tests.update.test_triton_launch import load_kernel

pytest.importorskip("triton")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STATES: dict[str, dict[str, Any]] = {
    "fp32 m": {},
    "bf16 m": {"state_dtype": torch.bfloat16},
    "8-bit m": {"state_dtype": "8bit"},
    "no m": {"momentum": 0.0},
}
MIXES = [
    mix
    for mix in itertools.product(DTYPES, STATES, ("nearest", "kahan", "stochastic"))
    if mix[::2] != ("fp16", "stochastic")
]
STEPS = 5


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    load_kernel(monkeypatch, interpret=request.param == "cpu")
    return torch.device(request.param)


class Model(nn.Module):
    """The gradients of its parameters are those that it is given."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in {"a": (64, 65), "b": (7,), "c": (16, 3, 2)}.items():
            value = torch.randn(shape, generator=generator).to(device, dtype)
            setattr(self, name, nn.Parameter(value))

    def loss(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step + 1)
        products = [
            (param * torch.randn(param.shape, generator=generator).to(param)).sum()
            for param in self.parameters()
        ]
        return torch.stack(products).sum()


class Run:
    """Some steps of training, with gradient release or without; counts the ordinary steps inside backward."""

    def __init__(self, device: torch.device, dtype: str, *, released: bool, **options: Any) -> None:
        self.model = Model(device, DTYPES[dtype])
        self.optimizer = SGDSaI(self.model.parameters(), lr=0.1, weight_decay=0.1, fused=True, **options)
        self.release = gradient_release(self.model, self.optimizer) if released else None
        self.ordinary = 0
        step_alone = self.optimizer.step_alone

        def counted(*args: Any) -> None:
            self.ordinary += 1
            step_alone(*args)

        self.optimizer.step_alone = counted  # type: ignore[method-assign]

    def train(self, steps: range) -> None:
        for step in steps:
            for group in self.optimizer.param_groups:
                if not isinstance(group["lr"], Tensor):
                    group["lr"] = 0.1 / (1 + step)
            self.model.loss(step).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def everything(self) -> list[Tensor]:
        """Parameters and states, in a fixed order."""
        params = list(self.model.parameters())
        states = [sorted(self.optimizer.state[param].items()) for param in params]
        numbers = [torch.as_tensor(value).cpu() for state in states for _, value in state]
        return [param.detach().cpu() for param in params] + numbers


def assert_equal(actual: Run, expected: Run) -> None:
    torch.testing.assert_close(actual.everything(), expected.everything(), rtol=0, atol=0, equal_nan=False)


@pytest.mark.parametrize(("dtype", "state", "rounding"), MIXES)
def test_is_the_ordinary_step(device: torch.device, dtype: str, state: str, rounding: str) -> None:
    options = STATES[state] | {"rounding": rounding}
    actual, expected = (Run(device, dtype, released=of, **options) for of in (True, False))
    for run in (actual, expected):
        run.train(range(STEPS))
    assert_equal(actual, expected)
    assert actual.ordinary == 3  # one for each parameter, in the second step: the first measures


def _set(name: str, value: Any) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        run.optimizer.param_groups[0][name] = value

    return change


def _lr_on_the_device(run: Run) -> None:
    run.optimizer.param_groups[0]["lr"] = torch.tensor(0.03, device=run.model.a.device)


def _momentum_begins_anew(run: Run) -> None:
    for state in run.optimizer.state.values():
        state["momentum_buffer"] = None
        state.pop("momentum_absmax", None)


def _momentum_of_more_bits(run: Run) -> None:
    for param, state in run.optimizer.state.items():
        state.pop("momentum_absmax", None)
        state["momentum_buffer"] = torch.full_like(param, 0.5, dtype=torch.float32)


def _momentum_elsewhere(run: Run) -> None:
    """As an offloader does it: other memory, the same values."""
    for state in run.optimizer.state.values():
        for key in ("momentum_buffer", "momentum_absmax"):
            if key in state:
                state[key] = state[key].clone()


def _other_scale(run: Run) -> None:
    run.optimizer.state[run.model.a]["gsnr"] *= 0.5


def _scale_as_a_tensor(run: Run) -> None:
    for state in run.optimizer.state.values():
        state["gsnr"] = torch.tensor(state["gsnr"])


def _attribute(name: str, value: float) -> Callable[[Run], None]:
    """As `torch.amp.GradScaler` sets it, and lets users set it."""

    def change(run: Run) -> None:
        setattr(run.optimizer, name, torch.tensor(value, device=run.model.a.device))

    return change


def _state_is_loaded(run: Run) -> None:
    run.optimizer.load_state_dict(run.optimizer.state_dict())


def _other_order(run: Run) -> None:
    run.model.c.data = run.model.c.data.permute(2, 0, 1).contiguous().permute(1, 2, 0)


def _compensation_is_gone(run: Run) -> None:
    for state in run.optimizer.state.values():
        state.pop("compensation", None)


def _measured_again(run: Run) -> None:
    run.optimizer.measure_again()


def _group_is_split(run: Run) -> None:
    """The second parameter becomes the first of a group of its own."""
    [group] = run.optimizer.param_groups
    a, b, c = group["params"]
    group["params"] = [a, c]
    run.optimizer.add_param_group({"params": [b], "momentum": group["momentum"]})


CHANGES = [
    _set("weight_decay", 0.3),
    _set("maximize", True),
    _set("momentum", 0.5),
    _set("normalize", False),
    _set("rounding", "nearest"),
    _set("rounding", "kahan"),
    _set("rounding", "stochastic"),
    _lr_on_the_device,
    _momentum_begins_anew,
    _momentum_of_more_bits,
    _momentum_elsewhere,
    _other_scale,
    _state_is_loaded,
    _other_order,
    _compensation_is_gone,
    _measured_again,
    _group_is_split,
    _set("weight_decay", np.float32(0.3)),
    _set("momentum", np.float16(0.3)),
    _scale_as_a_tensor,
    _attribute("grad_scale", 4.0),
    _attribute("found_inf", 1.0),
]


@pytest.mark.parametrize("options", [
    {"state_dtype": "8bit", "rounding": "stochastic"},
    {"state_dtype": torch.bfloat16, "rounding": "kahan"},
], ids=["8-bit m, stochastic", "bf16 m, kahan"])  # fmt: skip
@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_what_changes_counts(
    device: torch.device, change: Callable[[Run], None], options: dict[str, Any]
) -> None:
    actual, expected = (Run(device, "bf16", released=of, **options) for of in (True, False))
    for run in (actual, expected):
        run.train(range(3))
        change(run)
        run.train(range(3, STEPS))
    assert_equal(actual, expected)


def test_a_scale_that_became_a_tensor_takes_an_ordinary_step(device: torch.device) -> None:
    """Of float32, it equals the float that it rounds."""
    run = Run(device, "bf16", released=True)
    run.train(range(3))
    _scale_as_a_tensor(run)
    run.train(range(3, 4))
    assert run.ordinary == 3 + 3


def test_a_buffer_that_is_replaced_is_not_kept(device: torch.device) -> None:
    """A prepared step that held tensors would keep a momentum in memory that is no longer used."""
    run = Run(device, "bf16", released=True)
    run.train(range(3))
    state = run.optimizer.state[run.model.a]
    before = weakref.ref(state["momentum_buffer"])
    state["momentum_buffer"] = state["momentum_buffer"].clone()
    assert before() is None


def test_a_resized_parameter_is_an_error(device: torch.device) -> None:
    """The kernel would write beyond the end of its momentum."""
    run = Run(device, "bf16", released=True)
    run.train(range(3))
    run.model.b.data = torch.zeros(9, dtype=torch.bfloat16, device=device)
    with pytest.raises(ValueError, match="after a resize"):
        run.train(range(3, 4))


def test_autograd_notices_the_step(device: torch.device) -> None:
    run = Run(device, "bf16", released=True)
    run.train(range(3))
    before = [param._version for param in run.model.parameters()]
    run.train(range(3, 4))
    assert run.ordinary == 3
    assert all(p._version > version for p, version in zip(run.model.parameters(), before, strict=True))


@pytest.mark.parametrize("released", [False, True])
def test_a_gradient_may_lie_in_memory_as_its_negative(device: torch.device, released: bool) -> None:
    """Autograd leaves that of one number so, which was the imaginary part of a conjugated one."""
    model, options = nn.Linear(1, 1, bias=False).to(device), {"scale": "sqrt_d", "normalize": 1.0}
    param = model.weight
    begin = param.detach().clone()
    optimizer = SGDSaI(model.parameters(), lr=0.5, momentum=0.0, fused=True, **options)  # type: ignore[arg-type]
    if released:
        gradient_release(model, optimizer)
    for step, negative in enumerate((False, False, True, True, False), 1):
        z = torch.complex(torch.zeros_like(param), param).conj() * (1 + 1j) if negative else param
        z.real.sum().backward()  # the derivative is 1
        assert released or param.grad is None or param.grad.is_neg() == negative
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(param.detach(), begin - 0.5 * step)


def test_a_prepared_step_notices_a_negative_in_the_same_place(device: torch.device) -> None:
    run = Run(device, "fp32", released=True, momentum=0.0)
    run.train(range(3))
    assert run.release is not None
    for lies_as_it_is, ordinary in ((True, 3), (False, 4)):
        grad = torch.ones_like(run.model.a)
        before = run.model.a.detach().clone()
        run.model.a.grad = grad if lies_as_it_is else torch._neg_view(-grad)
        run.release.accumulated(run.model.a)
        assert run.ordinary == ordinary
        assert bool((run.model.a < before * (1 - 0.1 * run.optimizer.param_groups[0]["lr"])).all())


@pytest.mark.gpu
def test_a_capture_is_refused_as_by_an_ordinary_step() -> None:
    """A CUDA graph would keep lr, and the number of the step, for ever."""
    run = Run(torch.device("cuda"), "bf16", released=True)
    run.train(range(3))
    param = run.model.a
    with (
        pytest.raises(RuntimeError, match="capturable: given False"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        param.backward(torch.ones_like(param))
