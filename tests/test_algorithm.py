"""The optimizer against Algorithm 1 in float64 NumPy, hypothesis drawing the situations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from numpy_sai import NumpySaI
from sgd_sai import SGD_sai, SGDSaI
from sgd_sai.gsnr import as_real

DTYPES = {torch.float64: 1e-11, torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
DTYPES |= {torch.complex128: 1e-11, torch.complex64: 2e-6}

options = st.fixed_dictionaries(
    {
        "lr": st.floats(0, 2),
        "momentum": st.sampled_from([0.0, 0.5, 0.9, 0.99]),
        "eps": st.sampled_from([0.0, 1e-8, 1e-3, 0.5]),
        "weight_decay": st.sampled_from([0.0, 1e-3, 0.3]),
        "maximize": st.booleans(),
        "normalize": st.sampled_from([False, True, "rms"]),
        "unbiased": st.booleans(),
        "scale": st.sampled_from(["gsnr", "sqrt_d"]),
    }
)
#: What cannot be had together: (split, blocks, measure_first).
cuts = st.sampled_from(
    [(1, "tensor", False), (1, "tensor", True), (1, "group", False), (1, "group", True), (2, "tensor", False)]
)
#: The ways to compute a step: the for-loop, torch's multi-tensor operations, the fused kernel.
ways = st.sampled_from([{"foreach": False, "fused": False}, {"foreach": True}, {"fused": True}])
shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=3)


@st.composite
def parameter_groups(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], dict]:
    of_group, (split, blocks, measure_first) = draw(shapes), draw(cuts)
    if split > 1:  # it must divide the first dimension
        of_group = [(split * (shape[0] if shape else 1), *shape[1:]) for shape in of_group]
    return of_group, {**draw(options), "split": split, "blocks": blocks, "measure_first": measure_first}


#: What a parameter's gradient is at a step.
fates = st.sampled_from(
    ["normal", "normal", "normal", "none", "zero", "constant", "nan-until-latched", "tiny"]
)


def draw_gradient(fate: str, theta: np.ndarray, rng: np.random.Generator, latched: bool) -> np.ndarray | None:
    if fate == "none":
        return None
    if fate == "zero":
        return np.zeros_like(theta)
    if fate == "constant":
        return np.full_like(theta, rng.normal())
    g = np.asarray(rng.normal(size=theta.shape) + rng.normal())
    if fate == "nan-until-latched" and not latched:
        g[(0,) * g.ndim] = rng.choice([np.nan, np.inf])
    return np.asarray(g * 1e-3) if fate == "tiny" else g


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_numpy(dtype: torch.dtype, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    drawn = data.draw(st.lists(parameter_groups(), min_size=1, max_size=3), label="groups")
    pair = (2,) if dtype.is_complex else ()  # NumPy is given complex numbers as pairs of reals

    def tensor(x: np.ndarray) -> torch.Tensor:
        return (torch.view_as_complex(torch.tensor(x)) if pair else torch.tensor(x)).to(dtype)

    def array(x: torch.Tensor) -> np.ndarray:
        return as_real(x.detach()).double().numpy()

    def rounded(x: np.ndarray) -> np.ndarray:
        return array(tensor(x))

    groups = [([rounded(rng.normal(size=(*s, *pair))) for s in of_group], o) for of_group, o in drawn]
    params = [[nn.Parameter(tensor(a)) for a in arrays] for arrays, _ in groups]
    expected = NumpySaI(groups)
    way = data.draw(ways, label="way")
    optimizer = SGDSaI([{"params": p, **o} for p, (_, o) in zip(params, groups, strict=True)], **way)

    tolerance = DTYPES[dtype]
    for step in range(data.draw(st.integers(1, 5), label="steps")):
        grads = []
        for (arrays, _), blocks in zip(groups, expected.groups, strict=True):
            grads.append([])
            for index, (a, block) in enumerate(zip(arrays, blocks, strict=True)):
                g = draw_gradient(
                    data.draw(fates, label=f"step {step}, parameter {index}"), a, rng, block[0].G is not None
                )
                grads[-1].append(None if g is None else rounded(g))
        for of_group, gs in zip(params, grads, strict=True):
            for p, g in zip(of_group, gs, strict=True):
                p.grad = None if g is None else tensor(g)
        expected.step(grads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of blocks that are still unlatched
            optimizer.step()

        for (arrays, o), of_group in zip(groups, params, strict=True):
            for a, p in zip(arrays, of_group, strict=True):
                # Raw scales reach 5 · 5 · 5, so an error is relative to the largest thing added so far.
                size = max(1.0, np.abs(a).max()) * (1 + o["lr"] * 125)
                np.testing.assert_allclose(array(p), a, rtol=0, atol=tolerance * size)
                a[...] = rounded(a) if dtype in (torch.bfloat16, torch.float16) else a
                if dtype in (torch.bfloat16, torch.float16):
                    p.data.copy_(torch.tensor(a))  # a rounding that fell the other way must not add up
        if expected.G_max is not None:
            assert optimizer.param_groups[0]["gsnr_max"] == pytest.approx(expected.G_max, rel=1e-9)
        for blocks, of_group in zip(expected.groups, params, strict=True):
            for of_param, p in zip(blocks, of_group, strict=True):
                keys = ["gsnr"] if len(of_param) == 1 else [f"gsnr_{part}" for part in range(len(of_param))]
                for key, block in zip(keys, of_param, strict=True):
                    raw = optimizer.state[p].get(key, -1.0)
                    assert raw == (-1.0 if block.G is None else pytest.approx(block.G, rel=1e-9))


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3)])
def test_split_blocks_equal_numpy(shape: tuple[int, ...]) -> None:
    """A fused weight as three blocks, the middle one latching two steps late."""
    rng = np.random.default_rng(0)
    opts = {
        "lr": 0.1,
        "momentum": 0.9,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "maximize": False,
        "normalize": True,
    }
    opts |= {"unbiased": False, "measure_first": False, "scale": "gsnr", "split": 3, "blocks": "tensor"}
    a = rng.normal(size=shape)
    p = nn.Parameter(torch.tensor(a))
    expected, optimizer = NumpySaI([([a], opts)]), SGDSaI([{"params": [p], **opts}])
    for step in range(5):
        g = rng.normal(size=shape)
        if step < 2:
            g[2:4] = 0.0
        p.grad = torch.tensor(g)
        expected.step([[g]])
        if step == 0:
            with pytest.warns(UserWarning, match="SGDSaI: 1 parameter"):
                optimizer.step()
        else:
            optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), a, rtol=1e-12)
    raw = [optimizer.state[p][f"gsnr_{part}"] for part in range(3)]
    assert raw == pytest.approx([block.G for block in expected.groups[0][0]], rel=1e-12)


@pytest.mark.filterwarnings("ignore:.*when another SGDSaI took:UserWarning")  # one of them is cut by hand
def test_a_split_parameter_is_like_separate_ones() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(6, 4))
    thirds = [nn.Parameter(part.clone()) for part in whole.detach().chunk(3)]
    one, three = SGDSaI([whole], lr=0.1, split=3), SGDSaI(thirds, lr=0.1)
    for _ in range(3):
        whole.grad = torch.randn(6, 4)
        for part, grad in zip(thirds, whole.grad.chunk(3), strict=True):
            part.grad = grad.clone()
        one.step()
        three.step()
    assert torch.equal(whole, torch.cat(list(thirds)))


def test_a_group_can_be_one_block() -> None:
    """Its G is that of the concatenated gradient; a member whose gradient comes late joins it."""
    torch.manual_seed(0)
    a, b, late, other = (nn.Parameter(torch.randn(s)) for s in (10, 20, 7, 400))
    optimizer = SGDSaI([{"params": [a, b, late], "blocks": "group"}, {"params": [other]}], lr=0.1)
    for p in (a, b, other):
        p.grad = torch.randn_like(p)
    together = torch.cat([a.grad, b.grad]).double()
    with pytest.warns(UserWarning, match="parameter 2 of its group"):
        optimizer.step()
    expected = (together.norm() / together.std(correction=0)).item()
    assert optimizer.state[a]["gsnr"] == optimizer.state[b]["gsnr"] == pytest.approx(expected, rel=1e-6)
    for p in (a, b, late, other):
        p.grad = torch.randn_like(p)
    before = late.detach().clone()
    optimizer.step()
    assert optimizer.state[late]["gsnr"] == optimizer.state[a]["gsnr"]
    scale = optimizer.state[a]["gsnr"] / optimizer.param_groups[0]["gsnr_max"]
    torch.testing.assert_close(late.detach(), before - 0.1 * scale * late.grad)


def test_the_scale_is_one_over_the_largest_block() -> None:
    """Without momentum and decay a step is η G̃ g, and the block of the largest G_snr has G̃ = 1."""
    torch.manual_seed(0)
    small, large = nn.Parameter(torch.zeros(50)), nn.Parameter(torch.zeros(50, 40))
    optimizer = SGDSaI([small, large], lr=0.5, momentum=0.0)
    small.grad, large.grad = torch.randn(50), torch.randn(50, 40)
    optimizer.step()
    torch.testing.assert_close(large.detach(), -0.5 * large.grad)
    ratio = optimizer.state[small]["gsnr"] / optimizer.state[large]["gsnr"]
    torch.testing.assert_close(small.detach(), -0.5 * ratio * small.grad)
    assert ratio == pytest.approx((1 / 40) ** 0.5, rel=0.1)  # G_snr ≈ √d


def test_a_callable_rule_gets_moments() -> None:
    p = nn.Parameter(torch.zeros(3))
    seen = []

    def rule(moments):
        seen.append(moments)
        return 2.0

    optimizer = SGDSaI([p], lr=1.0, momentum=0.0, normalize=False, scale=rule)
    p.grad = torch.tensor([1.0, 2.0, 4.0])
    optimizer.step()
    (moments,) = seen
    assert (moments.n, moments.total, moments.total_sq) == (3, 7.0, 21.0)
    assert moments.variance() == pytest.approx(14 / 9)
    assert moments.variance(unbiased=True) == pytest.approx(14 / 6)
    torch.testing.assert_close(p.detach(), torch.tensor([-2.0, -4.0, -8.0]))


def test_tutorial_loop_runs_unchanged() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    lr, weight_decay = 0.3, 1e-4
    optimizer = SGD_sai(model.parameters(), lr=lr, momentum=0.9, eps=1e-08, weight_decay=weight_decay)
    x = torch.randn(64, 3)
    y = x.sum(1, keepdim=True)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert SGD_sai(model.parameters(), lr=lr, maximize=True).param_groups[0]["maximize"]
