"""The measurement of a gradient, against arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sgd_sai.diagnostics import Measurement, measure_blocks
from sgd_sai.gsnr import UNLATCHED


def measured(**gradients: list[float] | None) -> Measurement:
    named = []
    for name, values in gradients.items():
        param = nn.Parameter(torch.zeros(3 if values is None else len(values), dtype=torch.float64))
        param.grad = None if values is None else torch.tensor(values, dtype=torch.float64)
        named.append((name, param))
    return measure_blocks(named)


def test_moments_and_ratios_by_hand() -> None:
    g, h = np.array([3.0, -1.0, 2.0, 0.0]), np.array([0.5, -0.5])
    found = measured(g=list(g), h=list(h))
    G = [np.linalg.norm(x) / (x.std() + 1e-8) for x in (g, h)]
    assert [block.gsnr for block in found.blocks] == pytest.approx(G)
    assert [block.sigma for block in found.blocks] == pytest.approx([g.std(), h.std()])
    assert found.blocks[0].adam_rms == pytest.approx(math.sqrt(3 / 4))
    assert found.normalizers["gsnr_max"] == pytest.approx(max(G))
    ours = (G[0] * g) @ (G[0] * g) + (G[1] * h) @ (G[1] * h)
    assert found.normalizers["gsnr_rms"] == pytest.approx(math.sqrt(ours / 5))  # five are not zero
    assert found.adam_lr_ratio(False) == pytest.approx(math.sqrt(5 / ours))
    assert found.adam_lr_ratio(True) == pytest.approx(max(G) * math.sqrt(5 / ours))
    assert found.adam_lr_ratio("rms") == pytest.approx(1.0)


def test_a_scaler_divides_what_is_measured() -> None:
    """All that depends on the size of gradients: moments, σ, normalisers, flags, and G_snr through its ε."""
    values = {"a": [3e-8, -1e-8, 2e-8, 0.0], "b": [2e-9, -2e-9], "c": [0.0, 0.0], "d": [1.0, math.nan]}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(1))
    named, large = [], []
    for name, of_block in values.items():
        for pairs, factor in ((named, 1.0), (large, 1024.0)):
            param = nn.Parameter(torch.zeros(len(of_block), dtype=torch.float64))
            param.grad = factor * torch.tensor(of_block, dtype=torch.float64)
            pairs.append((name, param))
    truth, found = measure_blocks(named), measure_blocks(large, scaler=scaler)
    assert found.normalizers == pytest.approx(truth.normalizers, rel=1e-12)
    for block, true in zip(found.blocks, truth.blocks, strict=True):
        assert block.moments == pytest.approx(true.moments, rel=1e-12, nan_ok=True)
        assert block.gsnr == pytest.approx(true.gsnr, rel=1e-12)
        assert block.adam_rms == pytest.approx(true.adam_rms, rel=1e-12)
        assert found.flags(block) == truth.flags(true)
    assert truth.flags(truth.blocks[1]) == ["σ < ε"]
    as_they_are = measure_blocks(large)
    assert as_they_are.flags(as_they_are.blocks[1]) == []


def test_what_overflows_with_the_scale_is_unlatched() -> None:
    scaler = torch.amp.GradScaler("cpu")
    param, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    x = torch.tensor([1.0, -1.0, 2.0, 0.5])
    scaler.scale((1e35 * x * param).sum() + (x * other).sum()).backward()
    found = measure_blocks([("large", param), ("other", other)], scaler=scaler)
    assert [block.gsnr == UNLATCHED for block in found.blocks] == [True, False]
    assert found.normalizers["gsnr_rms"] == pytest.approx(
        measure_blocks([("other", other)], scaler=scaler).normalizers["gsnr_rms"]
    )


@pytest.mark.parametrize(("gradient", "flags"), [
    ([1.0, -1.0, 2.0], []),
    (None, ["unlatched (zero gradient)"]),
    ([0.0, 0.0], ["unlatched (zero gradient)"]),
    ([1.0, math.nan], ["unlatched (NaN or Inf)"]),
    ([1.0, math.inf], ["unlatched (NaN or Inf)"]),
    ([2.0], ["σ = 0"]),
    ([2.0, 2.0, 2.0], ["σ = 0"]),
    ([2.0, 2.0, 2.5], ["σ ≈ 0"]),
    ([1e-10, -1e-10], ["σ < ε"]),
])  # fmt: skip
def test_flags(gradient: list[float] | None, flags: list[str]) -> None:
    found = measured(one=gradient, other=[1.0, -2.0, 0.5], another=[1.0, 2.0, -0.5])
    assert found.flags(found.blocks[0]) == flags
    assert (found.blocks[0].gsnr == UNLATCHED) == any("unlatched" in flag for flag in flags)
    assert not found.flags(found.blocks[1])


def test_what_dominates() -> None:
    small, large = [1.0, -1.0], [1.0, -1.0] * 5
    found = measured(small=small, large=large, same=small)  # √10 against √2
    assert found.dominant is not None
    assert found.dominant.name == "large"
    assert measured(small=small, medium=[1.0, -1.0] * 3).dominant is None
    assert measured(only=large).dominant is None


def test_no_gradient_at_all() -> None:
    with pytest.raises(ValueError, match="gradients: none of the model's 2 trainable parameters"):
        measured(one=None, other=[0.0])
