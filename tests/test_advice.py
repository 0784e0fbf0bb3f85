"""What a user is told once, where it happens: capped blocks, an ε that is felt, a decay that is too large.

And `measure_again`, which is one of the remedies.
"""

from __future__ import annotations

import copy
import re
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optimizer_info import WAYS, give_gradients
from sgd_sai import UNLATCHED, SGDSaI, gradient_release, measure_scales, messages


def told(act: Callable[[], Any]) -> list[str]:
    """The warnings of SGDSaI while something is done."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    said = [str(warning.message) for warning in caught if "SGDSaI" in str(warning.message)]
    return [message for message in said if "it holds one block" not in message]


class Adapted(nn.Module):
    """A frozen matrix with LoRA's A and B, of which B is zero: in the first step A has no gradient."""

    def __init__(self, width: int = 48, rank: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Parameter(torch.randn(width, width), requires_grad=False)
        self.A = nn.Parameter(torch.randn(rank, width))
        self.B = nn.Parameter(torch.zeros(8, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.frozen)[:, :8] + x @ self.A.T @ self.B.T


def backward(model: nn.Module, which: int) -> None:
    torch.manual_seed(which)
    x = torch.randn(16, 48)
    model.zero_grad()
    (model(x) - x[:, :8]).square().mean().backward()


def train(model: nn.Module, optimizer: SGDSaI, which: range) -> None:
    for step in which:
        backward(model, step)
        optimizer.step()


def test_adapters_are_capped_and_it_is_said_where_it_happens() -> None:
    """B fixes the maximum with 14 % of the elements; A asks for 2.4 and gets 1, once told."""
    model = Adapted()
    optimizer = SGDSaI([(name, p) for name, p in model.named_parameters() if p.requires_grad], lr=0.1)
    [first] = told(lambda: train(model, optimizer, range(1)))
    assert "1 parameter(s), 86 % of the elements, met no finite, non-zero gradient in the first" in first
    assert "by the maximum of the others: parameter 'A'" in first
    [second] = told(lambda: train(model, optimizer, range(1, 2)))
    assert "1 parameter(s), 86 % of the elements, met their first gradient after the maximum was" in second
    [asked] = re.findall(r"up to ([\d.]+) and are 1: parameter 'A'", second)
    state = optimizer.state[model.A]
    assert float(asked) > 2
    assert float(asked) == pytest.approx(state["gsnr"] / state["gsnr_max"], rel=0.01)
    for remedy in ("measure_again()", "measure_scales(model, loss)", "normalize='rms'", "tune lr again"):
        assert remedy in second
    assert told(lambda: train(model, optimizer, range(2, 5))) == []


def by_measuring_again(model: nn.Module) -> SGDSaI:
    optimizer = SGDSaI(model.parameters(), lr=0.1)
    train(model, optimizer, range(2))
    optimizer.measure_again()
    return optimizer


def by_scales(model: nn.Module) -> SGDSaI:
    backward(model, 0)
    x = torch.randn(16, 48)
    scales = measure_scales(model, lambda: (model(x) - x[:, :8]).square().mean())
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    return SGDSaI(named, lr=0.1, scale=scales)


def by_rms(model: nn.Module) -> SGDSaI:
    return SGDSaI(model.parameters(), lr=1e-2, normalize="rms")


@pytest.mark.filterwarnings("ignore:SGDSaI", "ignore:measure_scales")
@pytest.mark.parametrize("remedy", [by_measuring_again, by_scales, by_rms], ids=lambda f: f.__name__)
def test_the_remedies_keep_the_ratio_of_the_scales(remedy: Callable[[nn.Module], SGDSaI]) -> None:
    """What the warning names does what it says: A and B are scaled as their G_snr are, not capped."""
    model = Adapted()
    optimizer = remedy(model)
    train(model, optimizer, range(2, 4))
    before = {param: param.detach().clone() for param in (model.A, model.B)}
    train(model, optimizer, range(4, 5))
    a, b = (
        float((before[param] - param).norm() / optimizer.state[param]["momentum_buffer"].norm())
        for param in (model.A, model.B)
    )
    expected = optimizer.state[model.A]["gsnr"] / optimizer.state[model.B]["gsnr"]
    assert expected > 2
    assert a / b == pytest.approx(expected, rel=1e-3)


def unfrozen(model: nn.Module, optimizer: SGDSaI) -> None:
    model.frozen.requires_grad_(True)


def added(model: nn.Module, optimizer: SGDSaI) -> None:
    model.frozen.requires_grad_(True)
    optimizer.add_param_group({"params": [("frozen", model.frozen)]})


@pytest.mark.parametrize("change", [unfrozen, added], ids=lambda f: f.__name__)
def test_a_backbone_that_is_unfrozen_is_named(change: Callable[[nn.Module, SGDSaI], None]) -> None:
    model = Adapted()
    named = list(model.named_parameters())
    optimizer = SGDSaI(named[1:] if change is added else named, lr=0.01)
    told(lambda: train(model, optimizer, range(1)))
    model.A.requires_grad_(False)
    change(model, optimizer)
    [warning] = told(lambda: train(model, optimizer, range(1, 2)))
    assert "1 parameter(s), 99 % of the elements" in warning
    assert "parameter 'frozen'" in warning


def test_the_largest_block_that_begins_with_a_nan() -> None:
    params = [nn.Parameter(torch.randn(shape)) for shape in ((60, 60), (9, 4))]
    optimizer = SGDSaI(params, lr=0.1)
    give_gradients(params, 0)
    params[0].grad[3, 3] = torch.nan
    told(optimizer.step)
    give_gradients(params, 1)
    [warning] = told(optimizer.step)
    assert "99 % of the elements" in warning
    assert "up to 9.9" in warning


@pytest.mark.parametrize("options", [{"normalize": "rms"}, {"normalize": False}, {"normalize": 9.0}], ids=str)
def test_forms_without_a_cap_are_not_warned_of(options: dict[str, Any]) -> None:
    model = Adapted()
    optimizer = SGDSaI(model.parameters(), lr=1e-3, **options)
    told(lambda: train(model, optimizer, range(1)))
    assert told(lambda: train(model, optimizer, range(1, 3))) == []


def test_late_blocks_of_the_size_of_the_others_are_not_warned_of() -> None:
    """As experts that wait for a token: each has about the g-SNR of the others."""
    params = [nn.Parameter(torch.randn(40, 40)) for _ in range(4)]
    optimizer = SGDSaI(params, lr=0.1)
    told(lambda: (give_gradients(params[:2], 0), optimizer.step()))
    assert told(lambda: (give_gradients(params, 1), optimizer.step())) == []


@pytest.mark.parametrize(("form", "said"), [(True, True), ("rms", False), (False, False)])
def test_the_maximum_is_named_where_it_counts(form: Any, said: bool) -> None:
    params = [nn.Parameter(torch.randn(9, 9)), nn.Parameter(torch.randn(9, 9))]
    optimizer = SGDSaI(params, lr=0.01, normalize=form)
    give_gradients(params[:1], 0)
    [warning] = told(optimizer.step)
    assert ("by the maximum of the others" in warning) == said


def test_a_parameter_of_several_blocks_is_named_once() -> None:
    params = [nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(60, 60))]
    optimizer = SGDSaI([("a", params[0]), ("b", params[1])], lr=0.1, split=3)
    give_gradients(params[:1], 0)
    told(optimizer.step)
    give_gradients(params, 1)
    [warning] = told(optimizer.step)
    assert "1 parameter(s)" in warning
    assert warning.count("'b'") == 1


def test_a_member_that_joins_a_measured_block_is_not_measured_by_its_eps() -> None:
    params = [nn.Parameter(torch.randn(50, 50)), nn.Parameter(torch.randn(60, 60))]
    optimizer = SGDSaI(params, lr=0.1, blocks="group")
    give_gradients(params[:1], 0)
    told(optimizer.step)
    give_gradients(params, 1)
    params[1].grad *= 2e-6
    assert told(optimizer.step) == []


def test_an_installed_program_is_the_users_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning points to its line, not to Python's that runs it; what it imports is a library."""
    monkeypatch.setattr(messages, "_LIBRARIES", (*messages._LIBRARIES, str(tmp_path)))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trainer_of_others.py").write_text("def go(optimizer):\n    optimizer.step()\n")
    (tmp_path / "program.py").write_text(
        "import torch, trainer_of_others\nfrom sgd_sai import SGDSaI\n"
        "p = torch.nn.Parameter(torch.ones(3, 3))\n"
        "p.grad = torch.ones(3, 3)\n"
        "trainer_of_others.go(SGDSaI([p], lr=30.0, weight_decay=0.1))\n"
    )
    with pytest.warns(UserWarning, match="multiply the weights") as caught:
        runpy.run_path(str(tmp_path / "program.py"), run_name="__main__")
    [warning] = [each for each in caught if "multiply" in str(each.message)]
    assert (warning.filename, warning.lineno) == (str(tmp_path / "program.py"), 5)


# ε


def branch(
    inner: float, way: dict[str, Any], eps: float = 1e-8
) -> tuple[list[nn.Parameter], SGDSaI, list[str]]:
    """A matrix, a bias, and a branch whose gradients are that much smaller."""
    params = [nn.Parameter(torch.randn(shape)) for shape in ((50, 50), (50,), (60, 60))]
    optimizer = SGDSaI(params, lr=0.1, eps=eps, **way)
    give_gradients(params, 0)
    params[2].grad *= inner
    return params, optimizer, told(optimizer.step)


@pytest.mark.parametrize("way", ["for-loop", "default"])
def test_an_eps_that_is_felt(way: str) -> None:
    """As in ConvNeXt, whose layer scale begins with 1e-6; eps=0 is the cure."""
    params, optimizer, warned = branch(1e-8, WAYS[way])
    assert len(warned) == 1
    assert (
        "eps=1e-08 is more than 1 % of the standard deviation of the gradients of 1 parameter(s), 59 % of"
        in warned[0]
    )
    assert "parameter 2 of its group" in warned[0]
    assert optimizer.state[params[2]]["gsnr"] == pytest.approx(30, rel=0.1)  # √d is 60
    params, optimizer, warned = branch(1e-8, WAYS[way], eps=0.0)
    assert warned == []
    assert optimizer.state[params[2]]["gsnr"] == pytest.approx(60, rel=0.1)
    assert branch(1e-4, WAYS[way])[2] == []


def test_a_loss_that_is_scaled_down() -> None:
    """× 1e-10: without eps=0 the ratio of two blocks is .43 where it is .1."""
    ratios = []
    for scale, eps in ((1.0, 1e-8), (1e-10, 1e-8), (1e-10, 0.0)):
        params = [nn.Parameter(torch.zeros(size)) for size in (100, 10000)]
        optimizer = SGDSaI(params, lr=0.1, eps=eps)
        give_gradients(params, 0, scale)
        params[1].grad *= 0.03
        warned = told(optimizer.step)
        assert len(warned) == (scale < 1 and eps > 0)
        ratios.append(optimizer.state[params[0]]["gsnr"] / optimizer.state[params[1]]["gsnr"])
    assert ratios[0] == pytest.approx(0.1, rel=0.1)
    assert ratios[0] == pytest.approx(ratios[2], rel=1e-3)
    assert ratios[1] > 3 * ratios[0]


def test_the_biases_of_keys_are_not_worth_a_word() -> None:
    """Their gradients are rounding errors, and they are a ten thousandth of a model."""
    torch.manual_seed(0)
    q, k, v, up = (nn.Linear(64, 64) for _ in range(4))
    embedding = nn.Embedding(300, 64)
    params = [param for module in (q, k, v, up, embedding) for param in module.parameters()]
    optimizer = SGDSaI(params, lr=0.1)
    x = embedding(torch.randint(300, (4, 9)))
    y = nn.functional.scaled_dot_product_attention(q(x), k(x), v(x))
    up(y).square().mean().backward()
    assert k.bias.grad.std() < 1e-8
    assert told(optimizer.step) == []


# Decay


def test_a_decay_that_turns_the_weights_around_is_told_once() -> None:
    params = [nn.Parameter(torch.randn(9, 9))]
    optimizer = SGDSaI(params, lr=30.0, weight_decay=0.1)
    before = params[0].detach().clone()
    give_gradients(params, 0, 1e-3)
    [warning] = told(optimizer.step)
    assert (
        "lr=30 and weight_decay=0.1 multiply the weights by 1 - lr * weight_decay = -2 in each step"
        in warning
    )
    assert (params[0] + 2 * before).abs().max() < 0.2
    assert told(optimizer.step) == []


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"lr": 10.0}, 1),
        ({"lr": 9.0}, 0),
        ({"lr": torch.tensor(30.0)}, 0),
        ({"lr": 30.0, "weight_decay": 0.0}, 0),
    ],
    ids=str,
)
def test_when_a_decay_is_too_large(options: dict[str, Any], count: int) -> None:
    params = [nn.Parameter(torch.randn(9, 9))]
    optimizer = SGDSaI(params, **{"weight_decay": 0.1, **options})
    give_gradients(params, 0)
    assert len(told(optimizer.step)) == count


# measure_again


OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalize": "rms", "lr": 1e-3},
    {"split": 2},
    {"blocks": "group"},
    {"state_dtype": "8bit"},
    {"momentum": 0.0},
    {"measure_first": True},
    {"scale": "sqrt_d"},
]


@pytest.mark.filterwarnings("ignore:SGDSaI")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
def test_measured_again(way: str, options: dict[str, Any]) -> None:
    """Scales and divisors are those of a new optimizer at the next gradient; momenta go on."""
    shapes = (20, 30), (70, 70), (8,)
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = SGDSaI(params, **{"lr": 0.1, **options, **WAYS[way]})
    for step in range(3):
        give_gradients(params[: 1 if step == 0 else None], step)
        optimizer.step()
    momenta = {param: copy.deepcopy(optimizer.state[param].get("momentum_buffer")) for param in params}
    optimizer.measure_again()
    assert optimizer.normalizers == {"gsnr_max": UNLATCHED, "gsnr_rms": UNLATCHED}
    assert all(group["gsnr_max"] == UNLATCHED for group in optimizer.param_groups)
    kept = [state for state in optimizer.state.values() if "gsnr_max" in state]
    assert {state[key] for state in kept for key in ("gsnr_max", "gsnr_rms")} == {UNLATCHED}
    fresh = [nn.Parameter(param.detach().clone()) for param in params]
    new = SGDSaI(fresh, **{"lr": 0.1, **options})
    for of in (params, fresh):
        give_gradients(of, 3, 0.5)
        of[0].grad *= 3
    optimizer.step()
    new.step()
    assert optimizer.normalizers == new.normalizers
    keys = [f"gsnr_{part}" for part in range(2)] if "split" in options else ["gsnr"]
    for p, q in zip(params, fresh, strict=True):
        assert [optimizer.state[p][key] for key in keys] == [new.state[q][key] for key in keys]
        momentum = optimizer.state[p].get("momentum_buffer")
        if options.get("measure_first"):  # it only measures
            assert torch.equal(momentum, momenta[p])
        elif momentum is not None and momentum.dtype != torch.int8:
            torch.testing.assert_close(momentum, momenta[p].lerp(p.grad, 0.1))


@pytest.mark.filterwarnings("ignore:SGDSaI")
@pytest.mark.parametrize("measure_first", [False, True])
def test_measured_again_while_gradients_are_released(measure_first: bool) -> None:
    """Equal to training without release: the next backward is a first one again."""
    models, optimizers = [Adapted(), Adapted()], []
    for model, release in zip(models, (False, True), strict=True):
        trained = [param for param in model.parameters() if param.requires_grad]
        optimizer = SGDSaI(trained, lr=0.1, measure_first=measure_first)
        optimizers.append(optimizer)
        if release:
            gradient_release(model, optimizer)
        train(model, optimizer, range(3))
        optimizer.measure_again()
        train(model, optimizer, range(3, 6))
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)
    assert optimizers[0].normalizers == optimizers[1].normalizers


def test_measured_again_is_saved_and_resumed() -> None:
    """Between the call and the next step, too."""
    runs = []
    for resume in (False, True):
        model = Adapted()
        trained = [model.A, model.B]
        optimizer = SGDSaI(trained, lr=0.1)
        told(lambda model=model, optimizer=optimizer: train(model, optimizer, range(3)))
        optimizer.measure_again()
        if resume:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = SGDSaI(trained, lr=9.0)
            optimizer.load_state_dict(saved)
        train(model, optimizer, range(3, 6))
        runs.append(trained)
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))
