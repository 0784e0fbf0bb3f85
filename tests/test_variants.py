"""The two published listings that differ from Algorithm 1 are reachable, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sgd_sai import SGD_sai, SGDSaI

RELEASE = {"normalize": False, "unbiased": True}
TUTORIAL = {"unbiased": True, "measure_first": True}


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    )


def small_transformer() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(30, 16),
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True),
        nn.Linear(16, 30),
    )


@pytest.mark.parametrize("build", [small_cnn, small_transformer])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_equals_release_1_0_3_over_50_steps(release, build, weight_decay: float) -> None:
    torch.manual_seed(0)
    ours, theirs = build(), build()
    theirs.load_state_dict(ours.state_dict())
    options = {"lr": 1e-4, "momentum": 0.9, "eps": 1e-8, "weight_decay": weight_decay}
    a = SGD_sai(ours.parameters(), **options, **RELEASE)
    b = release.SGD_sai(theirs.parameters(), **options)
    for _ in range(50):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)  # fresh directions: collinear gradients would hide a wrong momentum
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p - q).norm() <= 1e-6 * q.norm(), name
        assert a.state[p]["gsnr"] == pytest.approx(b.state[q]["gsnr"].item(), rel=1e-6)


def test_the_tutorial_measures_first_and_updates_from_the_second_step() -> None:
    torch.manual_seed(0)
    p, q = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(7, 3))
    start = [p.detach().clone(), q.detach().clone()]
    optimizer = SGD_sai([p, q], lr=0.1, momentum=0.9, weight_decay=0.01, **TUTORIAL)
    gradients = [[torch.randn(5), torch.randn(7, 3)] for _ in range(3)]

    p.grad, q.grad = gradients[0]
    optimizer.step()
    assert torch.equal(p, start[0])
    assert torch.equal(q, start[1])
    raw = [(g.norm() / g.std()).item() for g in gradients[0]]  # torch.std is the unbiased one
    assert [optimizer.state[x]["gsnr"] for x in (p, q)] == pytest.approx(raw, rel=1e-5)

    expected, m = [x.clone() for x in start], [None, None]
    for step in (1, 2):
        p.grad, q.grad = gradients[step]
        optimizer.step()
        for i, g in enumerate(gradients[step]):
            m[i] = g.clone() if m[i] is None else 0.9 * m[i] + 0.1 * g
            expected[i] = expected[i] * (1 - 0.1 * 0.01) - 0.1 * raw[i] / max(raw) * m[i]
    torch.testing.assert_close([p.detach(), q.detach()], expected)


def test_normalised_and_raw_forms_convert() -> None:
    """η_paper = η_raw · max G and λ_paper = λ_raw / max G give the same trajectory."""
    torch.manual_seed(0)
    raw_params = [nn.Parameter(torch.randn(s)) for s in ((30,), (40, 30))]
    paper_params = [nn.Parameter(p.detach().clone()) for p in raw_params]
    gradients = [[torch.randn_like(p) for p in raw_params] for _ in range(5)]
    largest = max((g.norm() / g.std(correction=0)).item() for g in gradients[0])
    raw = SGDSaI(raw_params, lr=1e-3, weight_decay=0.5, normalize=False)
    paper = SGDSaI(paper_params, lr=1e-3 * largest, weight_decay=0.5 / largest)
    for of_step in gradients:
        for p, q, g in zip(raw_params, paper_params, of_step, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        raw.step()
        paper.step()
    torch.testing.assert_close(raw_params, paper_params)
