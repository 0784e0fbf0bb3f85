"""The experiments of docs/beyond.md: their optimizers are what they say, their search finds what there is."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from research.beyond_the_paper import blockwise, gradients, prove, results, search
from sgd_sai import SGDSaI
from sgd_sai.lab.tasks import ALL
from sgd_sai.peers import builders

STEPS = 4
ROOT = Path(__file__).parents[2]


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3, bias=False))


def learn(model, optimizer):
    """A few steps on a falling learning rate; the parameters."""
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimizer.zero_grad()
        model(torch.randn(16, 6, generator=generator)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def made(model, method, **more):
    point = {"lr": 0.1, "1 - mu": 0.1, **more}
    return blockwise.build(method, model, point, ALL["cnn"])


@pytest.fixture(autouse=True)
def _kinds(monkeypatch):
    monkeypatch.setattr(blockwise, "KINDS", (("first", r"^0"), ("last", r"^3")))


def test_g_snr_a_block_is_sgd_sai():
    ours, theirs = small(), small()
    decay = ALL["cnn"].shrink / 0.1
    sai = SGDSaI(builders.groups(theirs), lr=0.1, weight_decay=decay, normalize="rms", eps=1e-8)
    torch.testing.assert_close(learn(ours, made(ours, "sgd-sai")), learn(theirs, sai))


def test_the_rule_of_the_page_is_what_was_measured():
    page = (ROOT / "docs" / "beyond.md").read_text("utf-8")
    names = {}
    exec(re.search(r"(def rule.*?)\noptimizer", page, re.DOTALL)[1], names)
    ours, theirs = small(), small()
    decay = ALL["cnn"].shrink / 0.1
    rule = SGDSaI(
        builders.groups(theirs), lr=0.1, weight_decay=decay, normalize="rms", eps=0.0, scale=names["rule"]
    )
    torch.testing.assert_close(learn(ours, made(ours, "settled")), learn(theirs, rule))


def test_equal_constants_are_sgd():
    """c = 1 for all: torch's SGD without dampening, in another unit of lr."""
    constants = {f"c of {kind}": 1.0 for kind in ("first", "last", "norms and biases")}
    one, two = small(), small()
    torch.testing.assert_close(learn(one, made(one, "constants", **constants)), learn(two, made(two, "sgd")))
    other = small()
    learn(other, made(other, "constants", **{**constants, "c of last": 9.0}))
    assert not torch.allclose(other[3].weight, two[3].weight, rtol=1e-3)


def test_one_number_a_block_that_forgets_at_once_is_the_normalised_gradient():
    """β₂ = 0 and μ = 0: every block moves by η g / rms(g)."""
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = made(model, "adaptive", **{"1 - mu": 1.0, "1 - beta2": 1.0})
    model(torch.ones(2, 6)).square().mean().backward()
    optimizer.kappa = 0.0
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        expected = old - 0.1 * p.grad / p.grad.square().mean().sqrt()
        torch.testing.assert_close(p.detach(), expected)


def test_one_number_an_element():
    model = small()
    scales = {p: torch.rand_like(p) for p in model.parameters()}
    before = {p: p.detach().clone() for p in scales}
    optimizer = blockwise.Elementwise(scales, lr=0.1, momentum=0.9, shrink=0.0)
    model(torch.ones(2, 6)).square().mean().backward()
    optimizer.step()
    for p, scale in scales.items():
        torch.testing.assert_close(p.detach(), before[p] - 0.1 * scale * p.grad)


def test_fused_query_key_and_value_are_three_blocks_and_rows_may_be_blocks():
    model = nn.ModuleDict({"c_attn": nn.Linear(9, 4, bias=False), "wte": nn.Embedding(5, 3)})
    names = [block.name for block in blockwise.blocks(model, rows=True)]
    assert names == [f"c_attn.weight.{kind}" for kind in ("query", "key", "value")] + [
        f"wte.weight.{row}" for row in range(5)
    ]
    parts = [block.of(model["c_attn"].weight) for block in blockwise.blocks(model)[:3]]
    assert torch.equal(torch.cat(parts, dim=1), model["c_attn"].weight)


def test_curvature_along_the_gradient():
    """Of ½ Σ aᵢ wᵢ² along g = a w: Σ aᵢ gᵢ² / Σ gᵢ²."""
    weights = {"first": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "last": torch.zeros(2, 1)}
    bends = torch.tensor([[1.0, 10.0], [5.0, 2.0]])

    class Problem:
        def model(self):
            return nn.ParameterDict({"0": weights["first"].clone(), "3": weights["last"].clone()})

        def batch(self, seed, step):
            return ()

        def loss(self, model, batch):
            return 0.5 * (bends * model["0"].square()).sum() + model["3"].square().sum()

    g = bends * weights["first"]
    found = gradients.curvature(Problem())
    assert found == {"0": pytest.approx(float((bends * g**2).sum() / (g**2).sum()), rel=1e-3), "3": 0.0}


def test_the_search_finds_the_minimum_and_goes_on_where_it_was():
    searched = {
        "lr": search.Number(1e-5, 1),
        "c": search.Number(1e-3, 1e3),
        "p": search.Number(-1, 2, log=False),
    }
    beginnings = [{"lr": 1e-3, "c": 1.0, "p": 0.5}, {"lr": 1e-2, "c": 1.0, "p": 0.5}]

    def loss(point):
        return math.log(point["lr"] / 3e-3) ** 2 + math.log(point["c"] / 20) ** 2 + (point["p"] + 0.2) ** 2

    trials = []
    for _ in range(150):
        point = search.following(trials, beginnings, searched)
        assert point == search.following(list(trials), beginnings, searched)
        assert all(number.least <= point[name] <= number.most for name, number in searched.items())
        trials.append(
            {"point": point, "val_loss": loss(point)}
            if point["lr"] < 0.5
            else {"point": point, "diverged": 1}
        )
    assert [trial["point"] for trial in trials[:2]] == beginnings
    assert results.loss_of(results.best(trials)) < 0.05


def test_proofs_go_on_where_they_were(monkeypatch, tmp_path, capsys):
    """Every run is a line; started again, only what is missing is run."""
    monkeypatch.undo()  # the kinds of blocks
    out = tmp_path / "beyond" / "proofs.jsonl"
    command = ["prove.py", "--out", str(out), "--task", "cnn", "--methods", "sgd", "--steps", "2", "--seeds"]
    monkeypatch.setattr("sys.argv", [*command, "0"])
    prove.main()
    rows = results.proofs("cnn-2", out)
    assert {(row["method"], row["for"], row["seed"]) for row in rows} == {
        ("sgd", "lr", 100),
        ("sgd", "proof", 0),
    }
    tried = [row for row in rows if row["for"] == "lr"]
    assert rows[-1]["point"] == results.best(tried)["point"]
    assert results.proofs("cnn", out) == []
    first = capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "0,1"])
    prove.main()
    assert results.proofs("cnn-2", out)[:-1] == rows
    assert results.proofs("cnn-2", out)[-1]["seed"] == 1
    assert (first.count("\n"), capsys.readouterr().out.count("\n")) == (len(rows), 1)


def test_gradients_are_recorded_by_kinds_of_blocks():
    model = small()
    watches = {"adamw": gradients.Watch(), "sgd": gradients.Watch()}
    for method, watch in watches.items():
        of_method = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[method]
        optimizer = of_method(model.parameters(), lr=1e-3)
        for step in range(2):
            optimizer.zero_grad()
            (model(torch.ones(2, 6)).square().mean() * (step + 1)).backward()
            watch(step, model, optimizer)
            optimizer.step()
    found = blockwise.blocks(model)
    rows = [*gradients.by_kind(found, **watches, curvatures={block.name: 2.0 for block in found})]
    assert [row["kind"] for row in rows] == ["first", "norms and biases", "last"]
    last = rows[-1]
    assert last["blocks"] == {"3.weight": 24}
    one, two = (last["rms(g)"]["adamw"][step] for step in (1, 2))
    assert last["along"] == [pytest.approx(math.sqrt(one * two))]
    assert last["rms(w)"] > 0
    assert last["curvature"] == 2.0
    assert last["spread"] > 1


def test_what_the_page_shows_of_kinds_is_of_all_their_blocks():
    for task in results.TASKS:
        for row, of in zip(results.kinds(task), results.measured(task), strict=True):
            assert row["kind"] == of["kind"]
            assert row["d"][0] <= row["mean of d"] <= row["d"][1]
            assert min(row["rms(g) by step"]["adamw"]) == 1
            assert row["c"] > 0
            assert len(of["along"]) == len(of["blocks"])
