"""The cases that break the published implementations, one test for each row that one process can show."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from sgd_sai import UNLATCHED, SGDSaI, first_gradient, gsnr
from sgd_sai.blocks import start_momentum


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


def give(params: list[nn.Parameter], *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def test_zero_first_gradient_latches_later() -> None:
    a, b = params = parameters((4, 3), (20, 30))
    optimizer = SGDSaI(params, lr=0.1)
    give(params, seed=1)
    a.grad.zero_()
    before = a.detach().clone()
    with pytest.warns(
        UserWarning,
        match=r"SGDSaI: 1 parameter\(s\), 2 % .* met no .* parameter 0 of its group, of shape \(4",
    ):
        optimizer.step()
    assert optimizer.state[a]["gsnr"] == UNLATCHED
    assert torch.equal(a, before)
    assert not optimizer.state[a]["momentum_buffer"].any()

    give(params, seed=2)
    g = a.grad.clone()
    optimizer.step()  # m at latch is that gradient, not (1 − μ) g
    torch.testing.assert_close(optimizer.state[a]["momentum_buffer"], g)
    raw = (g.norm() / g.std(correction=0)).item()
    assert optimizer.state[a]["gsnr"] == pytest.approx(raw, rel=1e-6)
    largest = optimizer.state[b]["gsnr"]
    torch.testing.assert_close(a.detach(), before - 0.1 * raw / largest * g)


def test_an_empty_parameter_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no g-SNR and needs none: no warning, and no later step measures."""
    full, empty, other = params = parameters((4, 3), (0, 3), (2,))
    optimizer = SGDSaI([{"params": [full, empty]}, {"params": [other]}], lr=0.1, blocks="group")
    give(params, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.state[full]["gsnr"] == optimizer.param_groups[0]["gsnr_max"] > 1.5
    monkeypatch.setattr(gsnr, "measure", lambda blocks: pytest.fail("measured") if blocks else [])
    give(params, seed=2)
    optimizer.step()
    assert optimizer.state[empty]["momentum_buffer"].shape == (0, 3)


@pytest.mark.parametrize("normalize", [True, False, "rms", 3.0])
@pytest.mark.parametrize("blocks", ["tensor", "group"])
def test_an_empty_parameter_beside_one_whose_first_gradient_is_zero(normalize: Any, blocks: str) -> None:
    """No block has a scale yet, and no divisor is known: the step waits. A resumed one does, too."""
    full, _, other = params = parameters((4, 3), (0, 3), (2,))
    options = {"lr": 0.1, "blocks": blocks, "normalize": normalize}
    optimizer = SGDSaI(params, **options)
    for p in params:
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    late = nn.Parameter(torch.empty(5, 0))
    late.grad = torch.empty(5, 0)
    optimizer.add_param_group({"params": [late]})  # a group that never gets a divisor of its own
    resumed = SGDSaI([{"params": params}, {"params": [late]}], **options)
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        each.step()
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    give(params, seed=1)
    optimizer.step()
    assert optimizer.state[full]["gsnr"] > 1.0
    assert not torch.equal(other, before[2])


def test_the_warning_points_to_the_line_of_the_user() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    q = nn.Parameter(torch.ones(3))
    q.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="SGDSaI: 1 parameter") as caught:
        SGDSaI([p, q]).step()
    assert [Path(one.filename).name for one in caught] == [Path(__file__).name]


def test_zero_gradient_decays_an_unlatched_block_as_algorithm_1_does() -> None:
    (p,) = parameters((4, 3))
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    SGDSaI([p], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), before * 0.95)


def test_a_step_with_zero_gradients_and_lr_zero_latches_nothing() -> None:
    """What distributed checkpoints and torchtitan do before training."""
    params = parameters((4, 3), (20, 30))
    optimizer = SGDSaI(params, lr=0.0, weight_decay=0.1)
    for p in params:
        p.grad = torch.zeros_like(p)
    before = copy.deepcopy(params)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    expected = {"momentum_buffer", "gsnr", "gsnr_max", "gsnr_rms"}
    assert all(set(optimizer.state[p]) == expected for p in params)
    assert all(optimizer.state[p]["gsnr"] == UNLATCHED for p in params)
    assert optimizer.param_groups[0]["gsnr_max"] == UNLATCHED

    fresh = SGDSaI(before, lr=0.1)
    optimizer.param_groups[0].update(lr=0.1, weight_decay=0.0)
    for step in range(3):
        give(params, seed=step)
        give(before, seed=step)
        optimizer.step()
        fresh.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_gradient_that_is_none_at_first() -> None:
    a, b = params = parameters((4, 3), (20, 30))
    optimizer = SGDSaI([("first", a), ("second", b)], lr=0.1)
    give([b], seed=1)
    with pytest.warns(UserWarning, match="parameter 'first'"):
        optimizer.step()
    assert a not in optimizer.state
    give(params, seed=2)
    optimizer.step()
    assert optimizer.state[a]["gsnr"] == pytest.approx(math.sqrt(12), rel=0.2)
    give(params, seed=3)
    optimizer.step()  # and no second warning: warnings are errors here


def test_added_parameter_group_latches_at_its_first_gradient() -> None:
    a, b = parameters((20, 30), (4, 3))
    optimizer = SGDSaI([a], lr=0.1)
    give([a], seed=1)
    optimizer.step()
    largest = optimizer.param_groups[0]["gsnr_max"]
    optimizer.add_param_group({"params": [b], "lr": 0.2})
    give([a, b], seed=2)
    before = b.detach().clone()
    optimizer.step()
    assert optimizer.param_groups[1]["gsnr_max"] == largest
    torch.testing.assert_close(b.detach(), before - 0.2 * optimizer.state[b]["gsnr"] / largest * b.grad)


@pytest.mark.parametrize("threads", [1, 2])
def test_moments_do_not_depend_on_the_tensors_measured_beside(threads: int) -> None:
    """Or training with `gradient_release`, which measures one by one, would not be bit for bit the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sizes = [0, 1, 2, 7, 100, 333, 1000, 2047, 2048, 2049]
        gradients = [p.detach() for p in parameters(*[(size,) for size in sizes * 40])]
        together = gsnr.measure([[g] for g in gradients])
        alone = [gsnr.measure([[g]])[0] for g in gradients]
    finally:
        torch.set_num_threads(before)
    assert together == alone
    for g, moments in zip(gradients, together, strict=True):
        expected = (g.numel(), g.double().sum().item(), g.double().square().sum().item(), g.numel(), 1)
        assert moments == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("form", [True, "rms"])
@pytest.mark.parametrize("size", [1e-310, 1e-170, 1e-150, 1e150, 1e160, 1e305])
def test_float64_gradients_whose_squares_are_beyond_float64_are_measured(
    size: float, form: Literal[True, "rms"]
) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(shape, dtype=torch.float64) for shape in ((30, 40), (7,))]

    def moved(factor: float) -> tuple[list[Tensor], list[float]]:
        params = [torch.zeros_like(g, requires_grad=True) for g in gradients]
        optimizer = SGDSaI(params, lr=0.1, eps=0.0, normalize=form)
        for param, g in zip(params, gradients, strict=True):
            param.grad = g * factor
        optimizer.step()
        return [p.detach() for p in params], [optimizer.state[p]["gsnr"] for p in params]

    if form == "rms" and size < 1:
        with pytest.raises(ValueError, match=r"'rms' would multiply lr by 34\.6 / .*, beyond float32"):
            moved(size)
        return
    (expected, gsnrs), (found, found_gsnrs) = moved(1.0), moved(size)
    digits = 1e-12 if size > 1e-300 else 1e-8  # gradients of fewer bits
    assert found_gsnrs == pytest.approx(gsnrs, rel=digits)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other / (1.0 if form == "rms" else size), one, rtol=digits, atol=0)


def test_members_of_a_block_may_be_beyond_float64_in_their_squares() -> None:
    tiny, usual = torch.full((4,), 1e-200, dtype=torch.float64), torch.arange(1.0, 4.0)
    [both] = gsnr.measure([[tiny, usual]])
    assert (both.n, both.total_sq, both.nonzero, both.unit) == (7, 14.0, 7, 1.0)
    [of_tiny] = gsnr.measure([[tiny]])
    assert of_tiny.norm == pytest.approx(2e-200)
    assert gsnr.combined([of_tiny, both]).norm == pytest.approx(both.norm)
    huge = torch.full((4,), 1e200, dtype=torch.float64)
    [with_float32] = gsnr.measure([[huge, usual]])
    assert with_float32.norm == pytest.approx(2e200)
    assert with_float32.deviation() == pytest.approx(1e200 * (12 / 49) ** 0.5)
    large = torch.full((4,), 6e153, dtype=torch.float64)  # the squares of two add up to more
    [of_two] = gsnr.measure([[large, -large]])
    assert of_two.measurable
    assert of_two.norm == of_two.deviation() * 8**0.5 == pytest.approx(6e153 * 8**0.5)
    assert gsnr.measure([[torch.full((100,), 1e307, dtype=torch.float64)]])[0].mean == pytest.approx(1e307)
    infinite, unknown = huge.clone(), huge.clone()
    infinite[0], unknown[0] = torch.inf, torch.nan
    assert not any(of.finite or of.measurable for of in gsnr.measure([[infinite], [unknown]]))


@pytest.mark.parametrize(
    ("form", "rule", "told"),
    [
        ("rms", "gsnr", "normalize: 'rms' would multiply lr by .*, beyond float32"),
        (1e-300, "gsnr", "normalize: 1e-300 multiplies lr by .* / 1e-300, beyond float32"),
        (False, lambda moments: 1e100, r"normalize: False multiplies lr by 1e\+100, beyond float32"),
    ],
    ids=["rms", "number", "raw"],
)
def test_a_scale_beyond_float32_is_refused_before_anything_moves(form: Any, rule: Any, told: str) -> None:
    [param] = parameters((50,))
    before = param.detach().clone()
    optimizer = SGDSaI([param], normalize=form, scale=rule)
    param.grad = torch.full_like(param, 1e-44)
    with pytest.raises(ValueError, match=told):
        optimizer.step()
    assert torch.equal(param, before)
    assert optimizer.state[param]["gsnr"] == -1
    assert optimizer.normalizers["gsnr_max"] == -1


def test_a_divisor_that_an_old_state_lacks_is_not_guessed_from_a_late_block() -> None:
    a, late = params = parameters((20, 30), (4, 3))
    optimizer = SGDSaI(params, lr=0.1)
    give([a], seed=1)
    with pytest.warns(UserWarning, match="SGDSaI"):
        optimizer.step()
    old = optimizer.state_dict()
    del old["param_groups"][0]["gsnr_rms"]
    del old["state"][0]["gsnr_rms"]
    optimizer.load_state_dict(old)
    give(params, seed=2)
    optimizer.step()
    assert optimizer.state[late]["gsnr"] > 0
    assert optimizer.param_groups[0]["gsnr_rms"] == UNLATCHED
    optimizer.param_groups[0]["normalize"] = "rms"
    with pytest.raises(ValueError, match="normalize: 'rms' divides by a number that the state lacks"):
        optimizer.step()


def test_momentum_begins_in_each_part_that_has_a_scale() -> None:
    """Where momentum was 0 until now: m₁ is the gradient of a latched part, and zero for one that waits."""
    (p,) = parameters((4, 3))
    optimizer = SGDSaI([p], lr=0.1, momentum=0.0, split=2)
    give([p], seed=1)
    p.grad[:2] = 0
    with pytest.warns(UserWarning, match="SGDSaI"):
        optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    give([p], seed=2)
    p.grad[:2] = 0
    optimizer.step()
    expected = torch.cat([torch.zeros(2, 3), p.grad[2:]])
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], expected)


def test_late_block_is_capped_at_one_and_its_raw_value_kept() -> None:
    small, large = parameters((4, 3), (20, 30))
    optimizer = SGDSaI([small, large], lr=0.1, momentum=0.0)
    give([small], seed=1)
    with pytest.warns(UserWarning, match="SGDSaI"):
        optimizer.step()
    give([small, large], seed=2)
    before = large.detach().clone()
    with pytest.warns(UserWarning, match="98 % of the elements, met their first gradient after the maximum"):
        optimizer.step()
    assert optimizer.state[large]["gsnr"] > optimizer.param_groups[0]["gsnr_max"]
    assert optimizer.state[large]["gsnr"] == pytest.approx(math.sqrt(600), rel=0.05)
    torch.testing.assert_close(large.detach(), before - 0.1 * large.grad)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_scalar_parameter_gets_one(size: float) -> None:
    """σ = 0: without a floor G would be |g|/ε, and as the maximum crush every other scale."""
    scalar, matrix = parameters((), (20, 30))
    optimizer = SGDSaI([scalar, matrix], lr=0.1, eps=1e-12)
    give([scalar, matrix], seed=1)
    scalar.grad.fill_(size)
    optimizer.step()
    assert optimizer.state[scalar]["gsnr"] == pytest.approx(1.0, rel=1e-5)
    assert optimizer.param_groups[0]["gsnr_max"] == optimizer.state[matrix]["gsnr"]


def test_equal_gradients_get_at_most_d() -> None:
    (p,) = parameters((5, 2))
    optimizer = SGDSaI([p], lr=0.1)
    p.grad = torch.full((5, 2), 3.0)
    optimizer.step()
    assert optimizer.state[p]["gsnr"] == pytest.approx(10.0, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_first_gradient_leaves_its_block_and_the_others_go_on(bad: float) -> None:
    a, b = params = parameters((4, 3), (20, 30))
    optimizer = SGDSaI(params, lr=0.1, weight_decay=0.1)
    give(params, seed=1)
    a.grad[0, 0] = bad
    before = copy.deepcopy(params)
    with pytest.warns(UserWarning, match="SGDSaI"):
        optimizer.step()
    assert torch.equal(a, before[0])
    assert optimizer.state[a]["gsnr"] == UNLATCHED
    assert not torch.equal(b, before[1])
    assert math.isfinite(optimizer.param_groups[0]["gsnr_max"])
    give(params, seed=2)
    optimizer.step()
    assert optimizer.state[a]["gsnr"] > 0
    assert all(p.isfinite().all() for p in params)
    torch.testing.assert_close(optimizer.state[a]["momentum_buffer"], a.grad)


def test_overflow_of_every_gradient_moves_nothing() -> None:
    params = parameters((4, 3), (20, 30))
    optimizer = SGDSaI(params, lr=0.1)
    for p in params:
        p.grad = torch.full_like(p, math.inf)
    before = copy.deepcopy(params)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert optimizer.param_groups[0]["gsnr_max"] == UNLATCHED


def test_without_momentum_no_buffer_is_allocated() -> None:
    (p,) = parameters((4, 3))
    optimizer = SGDSaI([p], lr=0.1, momentum=0.0)
    give([p], seed=1)
    before = p.detach().clone()
    optimizer.step()
    assert set(optimizer.state[p]) == {"gsnr", "gsnr_max", "gsnr_rms"}
    torch.testing.assert_close(p.detach(), before - 0.1 * p.grad)


def test_closure_is_evaluated_once() -> None:
    (p,) = parameters((4, 3))
    optimizer = SGDSaI([p], lr=0.1)
    calls = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    assert optimizer.step(closure) == calls[0]
    assert len(calls) == 1


@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_never_modified(maximize: bool) -> None:
    params = parameters((4, 3), (20, 30))
    optimizer = SGDSaI(params, lr=0.1, weight_decay=0.1, maximize=maximize)
    for step in range(3):
        give(params, seed=step)
        kept = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, kept, strict=True))


def test_maximize_is_minimising_the_negative() -> None:
    up, down = parameters((4, 3)), parameters((4, 3))
    ascend, descend = (
        SGDSaI(up, lr=0.1, weight_decay=0.1, maximize=True),
        SGDSaI(down, lr=0.1, weight_decay=0.1),
    )
    for step in range(3):
        give(up, seed=step)
        down[0].grad = -up[0].grad
        ascend.step()
        descend.step()
    assert torch.equal(up[0], down[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_keep_float32_momentum_and_exact_gsnr(dtype: torch.dtype) -> None:
    (p,) = parameters((40, 30), dtype=dtype)
    optimizer = SGDSaI([p], lr=0.1)  # ε = 1e-8 is zero in fp16: it must never be rounded to it
    p.grad = torch.full_like(p, 1e-3)
    p.grad[0] = -1e-3
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].dtype == torch.float32
    g = p.grad.double()
    assert optimizer.state[p]["gsnr"] == pytest.approx(
        (g.norm() / (g.std(correction=0) + 1e-8)).item(), rel=1e-12
    )


def test_complex_parameters_are_pairs_of_reals() -> None:
    torch.manual_seed(0)
    z = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))
    pairs = nn.Parameter(torch.view_as_real(z.detach()).clone())
    a, b = SGDSaI([z], lr=0.1, weight_decay=0.1), SGDSaI([pairs], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        z.grad = torch.randn(4, 3, dtype=torch.complex64)
        pairs.grad = torch.view_as_real(z.grad).clone()
        a.step()
        b.step()
    assert a.state[z]["gsnr"] == b.state[pairs]["gsnr"]
    assert torch.equal(torch.view_as_real(z.detach()), pairs.detach())


def test_cancellation_does_not_spoil_the_variance() -> None:
    """A mean 100 times the deviation, in a large block: Σg² − (Σg)²/n in float32 would be noise."""
    p = nn.Parameter(torch.zeros(1000, 1000))
    torch.manual_seed(0)
    p.grad = 1.0 + 1e-2 * torch.randn(1000, 1000)
    optimizer = SGDSaI([p], lr=0.1)
    optimizer.step()
    g = p.grad.double()
    assert optimizer.state[p]["gsnr"] == pytest.approx(
        (g.norm() / (g.std(correction=0) + 1e-8)).item(), rel=1e-6
    )


def test_sparse_gradient_is_refused_by_name_and_nothing_moves() -> None:
    dense, sparse = nn.Linear(3, 2), nn.Embedding(5, 3, sparse=True)
    named = [*dense.named_parameters(), ("table", sparse.weight)]
    optimizer = SGDSaI(named, lr=0.1)
    dense(sparse(torch.tensor([1, 2]))).sum().backward()
    before = dense.weight.detach().clone()
    with pytest.raises(ValueError, match=r"parameter 'table': its gradient is sparse .*sparse=False"):
        optimizer.step()
    assert torch.equal(dense.weight, before)


class NoMemory(Exception):
    pass


@pytest.mark.parametrize("normalize", [True, "rms"])
@pytest.mark.parametrize("fails", range(4))
@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}], ids=str)
def test_a_first_step_without_memory_that_is_tried_again(
    options: dict[str, Any], fails: int, normalize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divisors are those of all blocks, and each block that is frozen has its momentum."""
    shapes = (8, 8), (128, 64), (32, 16), (90, 90)
    truths, params = parameters(*shapes), parameters(*shapes)
    give(truths, seed=1)
    give(params, seed=1)
    truth = SGDSaI(truths, lr=0.1, normalize=normalize, **options)
    truth.step()

    optimizer, left = SGDSaI(params, lr=0.1, normalize=normalize, **options), [fails]

    def start(*given: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise NoMemory
        start_momentum(*given)

    monkeypatch.setattr(first_gradient, "start_momentum", start)
    with pytest.raises(NoMemory):
        optimizer.step()
    optimizer.step()
    for key in ("gsnr_max", "gsnr_rms"):
        assert optimizer.param_groups[0][key] == truth.param_groups[0][key]
    assert all(torch.equal(p, q) for p, q in zip(params, truths, strict=True))


def test_8_bits_without_memory_for_their_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """A momentum of codes alone would be taken for one of whole numbers."""
    param = nn.Parameter(torch.randn(90, 90))
    full = torch.full

    def fail(*given: Any, **options: Any) -> Any:
        if options.get("dtype") == torch.float32:
            raise NoMemory
        return full(*given, **options)

    optimizer = SGDSaI([param, nn.Parameter(torch.ones(3))], state_dtype="8bit")
    give(optimizer.param_groups[0]["params"], seed=1)
    monkeypatch.setattr(torch, "full", fail)
    with pytest.raises(NoMemory):
        optimizer.step()
    monkeypatch.undo()
    assert "momentum_buffer" not in optimizer.state[param]
    optimizer.step()
    assert {"momentum_buffer", "momentum_absmax"} <= optimizer.state[param].keys()


def regroup(optimizer: SGDSaI, params: list[nn.Parameter]) -> None:
    """The last parameter gets another lr."""
    optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({"params": params[-1:], "lr": 0.3})


def replace_the_first_group(optimizer: SGDSaI, params: list[nn.Parameter]) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(7, 7))]})
    first = optimizer.param_groups.pop(0)
    optimizer.add_param_group({"params": first["params"]})


@pytest.mark.parametrize("normalize", [True, "rms"])
@pytest.mark.parametrize("change", [regroup, replace_the_first_group], ids=lambda f: f.__name__)
def test_parameters_that_move_to_another_group(change: Any, normalize: Any) -> None:
    """The divisors of the first step are those of all groups, of new ones from the beginning."""
    params = parameters((4, 3), (20, 9), (3,))
    optimizer = SGDSaI(params, lr=0.1, normalize=normalize)
    give(params, seed=1)
    optimizer.step()
    largest, of_rms = (optimizer.param_groups[0][key] for key in ("gsnr_max", "gsnr_rms"))
    change(optimizer, params)
    assert {group["gsnr_max"] for group in optimizer.param_groups} == {largest}
    assert {group["gsnr_rms"] for group in optimizer.param_groups} == {of_rms}
    give(params, seed=2)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    divisor = largest if normalize is True else of_rms
    lrs = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for p, b in zip(params, before, strict=True):
        state = optimizer.state[p]
        expected = b - lrs[id(p)] * state["gsnr"] / divisor * state["momentum_buffer"]
        torch.testing.assert_close(p.detach(), expected)


def test_gradients_that_are_conjugated_lazily() -> None:
    start = torch.randn(5, 4, dtype=torch.complex64)
    lazy, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    other, twin = (nn.Parameter(torch.ones(3)) for _ in range(2))
    for step in range(3):
        for param, beside in ((lazy, other), (plain, twin)):
            if step == 0:
                param.optimizer = SGDSaI([param, beside], lr=0.1)
            generator = torch.Generator().manual_seed(step)
            gradient = torch.randn(5, 4, dtype=torch.complex64, generator=generator)
            param.grad = gradient.conj() if param is lazy else gradient.conj().resolve_conj()
            assert param.grad.is_conj() is (param is lazy)
            beside.grad = torch.randn(3, generator=generator)
            param.optimizer.step()
    assert torch.equal(lazy, plain)


def test_a_first_step_measures_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has just made the momenta, and need not look if somebody has given one."""
    params = parameters((4, 3), (20, 30))
    optimizer = SGDSaI(params, lr=0.1)
    give(params, seed=1)
    measured = []
    sums = gsnr._sums_of_all
    monkeypatch.setattr(gsnr, "_sums_of_all", lambda tensors: measured.append(len(tensors)) or sums(tensors))
    optimizer.step()
    assert measured == [2]
