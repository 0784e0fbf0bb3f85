"""Gradient release: the step inside backward is the step after it, and gradients never exist together."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from sgd_sai import SGDSaI, gradient_release


class Net(nn.Module):
    """A tied embedding, a norm, a fused weight, and a branch that starts at zero."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.inner = nn.Linear(3 * width, width, bias=False)
        self.late = nn.Parameter(torch.zeros(width, width))
        self.gate = nn.Parameter(torch.zeros(width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embedding(tokens))
        x = x + self.inner(torch.tanh(self.mix(x))) + x @ self.late @ self.gate + x @ self.gate
        return x @ self.embedding.weight.T


def train(release: bool, steps: int = 6, model: nn.Module | None = None, **options: Any) -> nn.Module:
    net = Net()
    optimizer = SGDSaI(net.named_parameters(), lr=0.3, weight_decay=0.01, **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if release:
        gradient_release(net, optimizer)
    for step in range(steps):
        torch.manual_seed(step)
        tokens = torch.randint(50, (4, 7))
        loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # `late` has a zero gradient at first
            optimizer.step()
        scheduler.step()
    assert all(p.grad is None for p in net.parameters()) or not release
    return net


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"measure_first": True},
        {"measure_first": True, "blocks": "group"},
        {"normalize": False, "scale": "sqrt_d"},
        {"momentum": 0.0, "measure_first": True},
        {"foreach": False, "fused": False},
    ],
    ids=str,
)
def test_equals_ordinary_training_bit_for_bit(options: dict[str, Any]) -> None:
    ordinary, released = train(False, **options), train(True, **options)
    for (name, p), q in zip(ordinary.named_parameters(), released.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(released.mix.weight, Net().mix.weight)


def gradients_alive(measure_first: bool, step: int) -> int:
    """Bytes of gradients that exist together at most, in a step of a chain of equal layers."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))
    optimizer = SGDSaI(net.parameters(), measure_first=measure_first)
    gradient_release(net, optimizer)
    most = 0

    def look(_: torch.Tensor) -> None:
        nonlocal most
        held = [p.grad for p in net.parameters() if type(p.grad) is torch.Tensor]
        most = max(most, sum(g.nbytes for g in held))

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(look)  # after the one that releases
    for _ in range(step + 1):
        most = 0
        optimizer.zero_grad()
        net(torch.randn(3, 64)).square().sum().backward()
        optimizer.step()
    return most


@pytest.mark.parametrize(("measure_first", "step", "layers"), [(False, 0, 10), (False, 1, 0), (True, 0, 0)])
def test_gradients_never_exist_together(measure_first: bool, step: int, layers: int) -> None:
    """Once a hook has run its gradient is gone; all of them exist only in an ordinary first step."""
    assert gradients_alive(measure_first, step) == layers * 64 * 64 * 4


def released_net() -> tuple[Net, SGDSaI]:
    net = Net()
    optimizer = SGDSaI(net.parameters(), measure_first=True)
    gradient_release(net, optimizer)
    return net, optimizer


def backward(net: nn.Module) -> None:
    tokens = torch.arange(14).view(2, 7)
    nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()).backward()


def test_clipping_by_the_global_norm_is_refused() -> None:
    net, _ = released_net()
    backward(net)
    with pytest.raises(RuntimeError, match=r"gradient_release: .* Clipping by the global norm"):
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)


def test_accumulation_is_refused() -> None:
    net, _ = released_net()
    backward(net)
    with pytest.raises(RuntimeError, match=r"gradient_release: .* gradient accumulation"):
        backward(net)


def test_grad_scaler_is_refused() -> None:
    net, optimizer = released_net()
    scaler = torch.amp.GradScaler("cpu")
    tokens = torch.arange(14).view(2, 7)
    scaler.scale(nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())).backward()
    with pytest.raises(RuntimeError, match=r"gradient_release: .* GradScaler"):
        scaler.step(optimizer)


def test_remove_gives_the_gradients_back() -> None:
    net = Net()
    optimizer = SGDSaI(net.parameters(), measure_first=True)
    handle = gradient_release(net, optimizer)
    backward(net)
    with pytest.warns(UserWarning, match="SGDSaI: 1 parameter"):
        optimizer.step()
    handle.remove()
    before = net.mix.weight.detach().clone()
    backward(net)
    assert net.mix.weight.grad.any()
    assert torch.equal(net.mix.weight, before)
    optimizer.step()
    assert not torch.equal(net.mix.weight, before)


def test_model_and_optimizer_can_be_freed() -> None:
    """Python's collector cannot see what the hooks of a parameter hold: they must not hold the optimizer."""

    def trained() -> list[weakref.ref[Any]]:
        net = nn.Linear(4, 4)
        optimizer = SGDSaI(net.parameters(), measure_first=True)
        gradient_release(net, optimizer)
        for _ in range(2):
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        kept = (net.weight, optimizer, optimizer.state[net.weight]["momentum_buffer"])
        return [weakref.ref(of) for of in kept]

    left = trained()
    gc.collect()
    assert [of() for of in left] == [None] * 3


@pytest.mark.filterwarnings("ignore:SGDSaI:UserWarning")  # `late` has a zero gradient at first
@pytest.mark.parametrize("measure_first", [False, True])
def test_options_count_that_are_set_after_a_state_was_loaded(measure_first: bool) -> None:
    """Loading replaces the groups: with lr = 0 in each nothing moves, inside backward either."""
    net, tokens = Net(), torch.randint(50, (4, 9))
    optimizer = SGDSaI(net.parameters(), lr=0.3, measure_first=measure_first)
    gradient_release(net, optimizer)
    for _ in range(2):
        net(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    before = [param.detach().clone() for param in net.parameters()]
    net(tokens).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_an_optimizer_that_lacks_a_parameter() -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"optimizer: lacks 1 parameter.*'gate'"):
        gradient_release(net, SGDSaI([p for name, p in net.named_parameters() if name != "gate"]))


class Late(nn.Module):
    """Some layers take part in the loss from the second step on only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.step = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x if self.step == 0 else self.third(torch.tanh(self.second(x)))


@pytest.mark.parametrize("measure_first", [False, True])
@pytest.mark.parametrize("joined", [("first", "second"), ("second", "third")])
def test_a_group_that_is_one_block_and_whose_gradients_come_late(
    measure_first: bool, joined: tuple[str, str]
) -> None:
    """A member that comes late joins the block as it was measured; one that is all late is measured whole.

    A member without elements counts for nothing.
    """
    nets, scales = (Late(), Late()), []
    for net, release in zip(nets, (False, True), strict=True):
        together = [getattr(net, name).weight for name in joined]
        alone = [p for p in net.parameters() if not any(p is q for q in together)]
        optimizer = SGDSaI(
            [{"params": alone}, {"params": [torch.empty(0), *together], "blocks": "group"}],
            lr=0.3,
            measure_first=measure_first,
        )
        if release:
            gradient_release(net, optimizer)
        for net.step in range(5):
            torch.manual_seed(net.step)
            optimizer.zero_grad()
            net(torch.randn(3, 6)).square().sum().backward()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # not all have a gradient at first
                optimizer.step()
        scales.append([optimizer.state[p]["gsnr"] for p in net.parameters()])
        of_block = {optimizer.state[p]["gsnr"] for p in together}
        assert len(of_block) == 1
    assert scales[0] == scales[1]
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(p, q)
