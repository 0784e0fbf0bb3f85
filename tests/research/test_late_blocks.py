"""The study of docs/late.md: its ways are what they say, its search is one, and it goes on where it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from research.late_blocks import __main__ as command
from research.late_blocks import results, ways
from research.late_blocks.situations import SITUATIONS, Situation, halves
from research.late_blocks.ways import WAYS, train
from sgd_sai import SGDSaI
from sgd_sai.lab.tasks import Problem

STEPS, LR = 6, 0.01
RATIO = (40 * 30 / (5 * 30)) ** 0.5  # of √d, of the late matrix to the head


class Toy(nn.Module):
    """A matrix and a head that is zero, as the lab's models answer."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.head = nn.Linear(40, 30, bias=False), nn.Linear(30, 5, bias=False)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.late(x).tanh()))


class ZeroHead(Toy):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.head.weight)


def batch(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * seed + step)
    return torch.randn(32, 40, generator=generator), torch.randint(5, (32,), generator=generator)


def toy(kind: str) -> tuple[Situation, Problem]:
    """A head that is zero, or a matrix that is frozen for the first two of six steps."""
    model = ZeroHead if kind == "zero head" else Toy
    problem = Problem(model, batch, [batch(9, step) for step in range(3)], "random")
    first = None if kind == "zero head" else lambda name: name.startswith("head")
    return Situation(kind, lambda: problem, STEPS, {}, first), problem


def scales_by_step(kind: str, way: str) -> list[tuple[float, float]]:
    """(that of the late matrix, that of the head) in each step, by how far they move; 0 at rest."""
    found: list[tuple[float, float]] = []
    situation, problem = toy(kind)
    torch.manual_seed(0)
    before = {name: param.detach() for name, param in problem.model().named_parameters()}

    def watch(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        of = {}
        for name, param in model.named_parameters():
            moved = float((before[name] - param.detach()).norm())
            before[name] = param.detach().clone()
            momentum = optimizer.state[param].get("momentum_buffer") if moved else None
            lr = optimizer.param_groups[0]["lr"]
            of[name] = 0.0 if momentum is None else moved / (lr * float(momentum.norm()))
        found.append((of["late.weight"], of["head.weight"]))

    assert train(situation, problem, way, LR, seed=0, steps=STEPS, watch=watch).model is not None
    return found[:-1]  # the schedule ends at nearly 0


#: Way → what the scales of the late matrix and of the head are at the end.
ENDS = {
    "as it is": (1.0, 1.0),
    "measure_again": (1.0, 1 / RATIO),
    "measure_scales": (1.0, 1 / RATIO),
}


@pytest.mark.parametrize(("kind", "begins"), [("zero head", 1), ("unfreezing", 2)])
@pytest.mark.parametrize("way", ENDS)
def test_the_scales_of_a_way(kind: str, begins: int, way: str) -> None:
    """As it is, the late matrix is capped at exactly 1; a remedy keeps the ratio of the two."""
    found = scales_by_step(kind, way)
    assert [late for late, _ in found[:begins]] == [0.0] * begins
    measured = {"measure_again": begins + (kind == "zero head"), "measure_scales": 0}.get(way, STEPS)
    for step, (late, head) in enumerate(found):
        if step >= begins:
            assert late == pytest.approx(1.0, rel=1e-2)
        assert head == pytest.approx(1 / RATIO if step >= measured else 1.0, rel=0.05)
    assert found[-1] == pytest.approx(ENDS[way], rel=0.05)


@pytest.mark.parametrize("kind", ["zero head", "unfreezing"])
def test_rms_keeps_the_ratio_too(kind: str) -> None:
    late, head = scales_by_step(kind, "rms")[-1]
    assert late / head == pytest.approx(RATIO, rel=0.05)


def test_what_is_capped_is_told_from_the_state() -> None:
    situation, problem = toy("zero head")
    ends = {way: train(situation, problem, way, LR, seed=0, steps=STEPS) for way in WAYS}
    shares = {way: ways.capping(end.optimizer) for way, end in ends.items() if way != "adamw"}
    assert shares["as it is"]["capped"] == pytest.approx(40 / 45, abs=1e-4)
    assert shares["as it is"]["ratio"] == pytest.approx(RATIO, rel=0.05)
    assert shares["measure_again"] == shares["measure_scales"] == {"capped": 0.0, "ratio": 1.0}
    optimizers = {way: end.optimizer for way, end in ends.items()}
    assert ways.scales(optimizers["as it is"]) == [1.0, 1.0]
    again = ways.scales(optimizers["measure_again"])
    assert ways.apart(again, [1.0, 1.0]) == pytest.approx(RATIO, rel=0.05)
    assert isinstance(optimizers["rms"], SGDSaI)
    assert optimizers["rms"].param_groups[0]["normalize"] == "rms"
    assert type(optimizers["adamw"]) is torch.optim.AdamW
    assert optimizers["adamw"].param_groups[0]["weight_decay"] == 0


def test_a_search() -> None:
    """Half decades until the best is between two, then beside it; each point once."""
    found: dict[int, float] = {}
    tried = []
    for _ in range(9):
        tried.append(command.following(found, 0))
        found[tried[-1]] = abs(tried[-1] - 5.4)
    assert tried[:7] == [0, -4, 4, 8, 2, 6, 5]
    assert len(set(tried)) == len(tried)
    assert not results.on_edge({command.rate(k): loss for k, loss in found.items()})
    assert results.on_edge({1.0: 2.0, 3.162: 1.0})
    assert command.rate(4) == 3.162


def test_searches_and_what_counts_see_different_halves() -> None:
    _, problem = toy("zero head")
    searched, judged = halves(problem)
    of = [{tuple(row.tolist()) for x, _ in half.validation for row in x} for half in (searched, judged)]
    assert not of[0] & of[1]
    assert len(of[0] | of[1]) == 3 * 32


def test_the_command_runs_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "zero_classifier"
    words = ["late", "--situation", name, "--steps", "3", "--trials", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "0"])
    command.main()
    folder = tmp_path
    rows = results.rows(name, 3, folder)  # type: ignore[arg-type]
    assert [row["for"] for row in rows] == ["scales", *["lr", "lr", "proof"] * len(WAYS)]
    assert all("val_loss" in row or "diverged" in row for row in rows[1:])
    assert rows[0]["capped"] > 0.9
    assert rows[0]["ratio"] == pytest.approx((16384 / 640) ** 0.5, rel=0.05)
    for way in WAYS:
        [proof] = [row for row in rows if row["for"] == "proof" and row["way"] == way]
        assert proof["lr"] == results.best(results.searched(rows, way))
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "0,1"])
    command.main()
    assert results.rows(name, 3, folder)[: len(rows)] == rows  # type: ignore[arg-type]
    assert capsys.readouterr().out.count("\n") >= len(WAYS)
    assert len(results.rows(name, 3, folder)) == len(rows) + len(WAYS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_records_are_what_the_page_says(name: str) -> None:
    """Equal numbers of trials, the best not on an edge, five other seeds, and every way or none."""
    rows = results.rows(name, SITUATIONS[name].steps)
    assert results.scales(rows)
    proven = {way: results.proven(rows, way) for way in WAYS}
    if not any(proven.values()):
        return
    for way, runs in proven.items():
        search = results.searched(rows, way)
        assert len(search) == 7
        assert not results.on_edge(search), way
        assert runs.keys() == set(range(5))
        assert {row["lr"] for row in rows if row["for"] == "proof" and row["way"] == way} == {
            results.best(search)
        }
