"""Gradient release: the step inside backward is the step after it, and gradients never exist together."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from sgd_sai import GSNRRecorder, SGDSaI, gradient_release

#: The first gradient of `late` is that small.
pytestmark = pytest.mark.filterwarnings("ignore:SGDSaI. eps")


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


@pytest.fixture
def without_collector() -> Iterator[None]:
    """What is freed is freed as soon as nobody holds it: Python's collector may come late, or never."""
    learn(net := Net(), fresh(net, True), range(2))  # torch imports some of itself in the first steps
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def moved_once(net: nn.Linear, **options: Any) -> tuple[SGDSaI, Any]:
    optimizer = SGDSaI(net.parameters(), **options)
    release = gradient_release(net, optimizer)
    for _ in range(2):
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    return optimizer, release


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("ends", [False, True], ids=["left", "removed"])
@pytest.mark.parametrize("options", [{}, {"measure_first": True}], ids=str)
def test_model_and_optimizer_can_be_freed(options: dict[str, Any], ends: bool) -> None:
    """Nobody has to call `remove`: of 200 models nothing stays, as of a search for hyperparameters."""

    def trained() -> list[weakref.ref[Any]]:
        net = nn.Linear(4, 4)
        optimizer, release = moved_once(net, **options)
        if ends:
            release.remove()
        kept = (net, net.weight, optimizer, release, optimizer.state[net.weight]["momentum_buffer"])
        return [weakref.ref(of) for of in kept]

    left = [of for _ in range(200) for of in trained()]
    assert [of() for of in left if of() is not None] == []


@pytest.mark.usefixtures("without_collector")
def test_release_ends_with_its_optimizer() -> None:
    """The handle keeps no optimizer alive. Gradients stay then, nothing moves, and no hooks pile up."""
    net = nn.Linear(4, 4)
    for _ in range(3):
        optimizer, release = moved_once(net)
        net(torch.ones(2, 4)).sum().backward()  # has moved; the step that would notice never comes
        ref = weakref.ref(optimizer)
        del optimizer
        assert ref() is None
    before = net.weight.detach().clone()
    assert len(net.weight._post_accumulate_grad_hooks) == 1
    net.zero_grad()
    net(torch.ones(2, 4)).sum().backward()
    assert torch.equal(net.weight, before)
    assert type(net.weight.grad) is torch.Tensor
    release.remove()
    assert not net.weight._post_accumulate_grad_hooks
    new = SGDSaI(net.parameters())
    new.step()
    assert not torch.equal(net.weight, before)


def test_removed_between_backward_and_step() -> None:
    """What has moved inside backward is not moved again, and the step finds nothing that it cannot read."""
    net, twin = Net(), Net()
    optimizer, other = fresh(net, False), fresh(twin, False)
    release = gradient_release(net, optimizer)
    for each, of in ((optimizer, net), (other, twin)):
        learn(of, each, range(3))
        each.zero_grad()
        backward(of)
        if each is optimizer:
            release.remove()
        each.step()
        each.zero_grad()
        learn(of, each, range(4, 6))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def test_a_pickled_model_and_optimizer_train_on_without_release() -> None:
    net = Net()
    optimizer = fresh(net, True)
    learn(net, optimizer, range(3))
    other, copied = pickle.loads(pickle.dumps((net, optimizer)))
    for each, of in ((optimizer, net), (copied, other)):
        learn(of, each, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    assert all(param.grad is None for param in net.parameters())
    assert all(type(param.grad) is torch.Tensor for param in other.parameters())


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


def fresh(net: nn.Module, release: bool, **options: Any) -> SGDSaI:
    options = {"lr": 0.3, "weight_decay": 0.01, **options}
    optimizer = SGDSaI(net.parameters(), **options)
    if release:
        gradient_release(net, optimizer)
    return optimizer


def learn(net: nn.Module, optimizer: SGDSaI, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        tokens = torch.randint(50, (4, 7))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # not all have a gradient at first
            optimizer.step()


FORMS = [
    {"normalize": normalize, "lr": lr, "measure_first": measure_first, **more}
    for normalize, lr in ((True, 0.3), (False, 0.01), ("rms", 0.003), (30.0, 0.3))
    for measure_first in (False, True)
    for more in ({}, {"blocks": "group"}, {"state_dtype": "8bit"})
]


@pytest.mark.parametrize("saved_after", [1, 3])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_resumes_bit_for_bit_in_the_order_that_everybody_writes(
    options: dict[str, Any], saved_after: int
) -> None:
    """Model, optimizer, `gradient_release`, then `load_state_dict`; and lr changes afterwards."""
    net = Net()
    optimizer = fresh(net, True, **options)
    learn(net, optimizer, range(saved_after))
    other = Net()
    resumed = fresh(other, True, **options)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, of in ((optimizer, net), (resumed, other)):
        each.param_groups[0]["lr"] /= 3
        learn(of, each, range(saved_after, saved_after + 3))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    assert all(param.grad is None for param in other.parameters())


def add_a_group(net: Net, optimizer: SGDSaI) -> None:
    net.gate.requires_grad_(True)
    optimizer.add_param_group({"params": [net.gate], "lr": 0.05})


def unfreeze(net: Net, optimizer: SGDSaI) -> None:
    net.gate.requires_grad_(True)


def take_a_group_away(net: Net, optimizer: SGDSaI) -> None:
    del optimizer.param_groups[0]
    optimizer.add_param_group({"params": [net.gate.requires_grad_(True)]})


@pytest.mark.parametrize("change", [add_a_group, unfreeze, take_a_group_away], ids=lambda f: f.__name__)
@pytest.mark.parametrize("measure_first", [False, True])
def test_groups_that_change_while_training(change: Any, measure_first: bool) -> None:
    """Bit for bit as without release; and from the second step on gradients are freed."""
    nets = Net(), Net()
    for net, release in zip(nets, (False, True), strict=True):
        net.gate.requires_grad_(False)
        held = [] if change is not unfreeze else [net.gate]
        groups = [
            {"params": [net.embedding.weight]},
            {"params": [*net.norm.parameters(), *net.mix.parameters(), net.inner.weight, net.late, *held]},
        ]
        optimizer = SGDSaI(groups, lr=0.3, measure_first=measure_first)
        if release:
            gradient_release(net, optimizer)
        learn(net, optimizer, range(3))
        change(net, optimizer)
        learn(net, optimizer, range(3, 5))
        optimizer.param_groups[-1]["lr"] = 0.2
        freed: list[bool] = []
        net.gate.register_post_accumulate_grad_hook(
            lambda p, freed=freed: freed.append(type(p.grad) is not torch.Tensor)
        )
        learn(net, optimizer, range(5, 8))
        assert freed == [release] * 3
    for (name, p), q in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(nets[1].gate, Net().gate)


def test_a_copy_trains_on_without_release() -> None:
    """Hooks belong to the parameters that they were set on."""
    net = Net()
    optimizer = fresh(net, True, measure_first=True)
    learn(net, optimizer, range(3))
    other, copied = copy.deepcopy((net, optimizer))
    for each, of in ((optimizer, net), (copied, other)):
        learn(of, each, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    assert [param.grad is None for param in other.parameters()] == [False] * 8
    assert all(param.grad is None for param in net.parameters())


@pytest.mark.parametrize("before", [False, True])
def test_hooks_of_the_user_stay(before: bool) -> None:
    """One set before ours sees the gradient, and may change it; one set after ours sees that it is gone."""
    nets, seen = (Net(), Net()), []

    def clip(param: torch.Tensor) -> None:
        seen.append(type(param.grad))
        if type(param.grad) is torch.Tensor:
            torch.nn.utils.clip_grad_norm_([param], 1e-3)

    for net, release in zip(nets, (False, True), strict=True):
        optimizer = fresh(net, release and not before)
        handles = [param.register_post_accumulate_grad_hook(clip) for param in net.parameters()]
        if release and before:
            gradient_release(net, optimizer)
        learn(net, optimizer, range(1))
        seen.clear()
        learn(net, optimizer, range(1, 4))
        for handle in handles:
            handle.remove()
    assert {kind is torch.Tensor for kind in seen} == {before}
    same = [torch.equal(p, q) for p, q in zip(*(net.parameters() for net in nets), strict=True)]
    assert all(same) is before


def test_an_error_in_the_middle_of_backward() -> None:
    """What has moved has moved; after `zero_grad` training goes on, and nothing moves twice in a step."""
    net = Net()
    optimizer = fresh(net, True, measure_first=True)
    learn(net, optimizer, range(3))
    before = {name: param.detach().clone() for name, param in net.named_parameters()}

    def fail(grad: torch.Tensor) -> None:
        raise RuntimeError("out of memory")

    handle = net.norm.weight.register_hook(fail)
    tokens = torch.arange(14).view(2, 7)
    with pytest.raises(RuntimeError, match="out of memory"):
        nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()).backward()
    handle.remove()
    moved = {name for name, param in net.named_parameters() if not torch.equal(param, before[name])}
    assert {"mix.weight"} <= moved
    assert moved.isdisjoint({"norm.weight", "embedding.weight"})
    optimizer.zero_grad()
    twin = Net()
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    ordinary = fresh(twin, False, measure_first=True)
    ordinary.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    learn(net, optimizer, range(4, 7))
    learn(twin, ordinary, range(4, 7))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def test_an_average_of_the_weights() -> None:
    """It is updated after the step, when all parameters have moved."""
    averages = []
    for release in (False, True):
        net = Net()
        optimizer = fresh(net, release, measure_first=True)
        average = torch.optim.swa_utils.AveragedModel(
            net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        for step in range(5):
            learn(net, optimizer, range(step, step + 1))
            average.update_parameters(net)
        averages.append(average)
    for p, q in zip(*(average.parameters() for average in averages), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("measure_first", [False, True])
def test_a_closure(measure_first: bool) -> None:
    """Lightning steps with one: backward is inside the step."""
    nets = Net(), Net()
    for net, release in zip(nets, (False, True), strict=True):
        optimizer = fresh(net, release, measure_first=measure_first)
        for step in range(4):
            torch.manual_seed(step)
            tokens = torch.randint(50, (4, 7))

            def closure(net: Net = net, optimizer: SGDSaI = optimizer, tokens: Any = tokens) -> torch.Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
                loss.backward()
                return loss

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                loss = optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
            assert loss.item() > 0
        assert all(param.grad is None for param in net.parameters()) is release
    assert all(torch.equal(p, q) for p, q in zip(*(net.parameters() for net in nets), strict=True))


def test_a_second_release_ends_the_first() -> None:
    """A cell of a notebook that is run again: it is the new optimizer that trains from now on."""
    net, twin = Net(), Net()
    old = fresh(net, True)
    learn(net, old, range(3))
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    with pytest.warns(UserWarning, match=r"gradient_release: .* that release has ended"):
        new = fresh(net, True, weight_decay=0.0)
    other = fresh(twin, False, weight_decay=0.0)
    learn(net, new, range(3, 6))
    learn(twin, other, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("measure_first", [False, True])
def test_a_sparse_gradient_is_refused_by_name(measure_first: bool) -> None:
    net = nn.Embedding(10, 4, sparse=True)
    optimizer = SGDSaI(net.named_parameters(), measure_first=measure_first)
    gradient_release(net, optimizer)

    def step() -> None:
        net(torch.arange(3)).sum().backward()
        optimizer.step()

    with pytest.raises(ValueError, match="parameter 'weight': its gradient is sparse"):
        step()


def test_the_recorder_says_that_it_finds_no_gradients() -> None:
    net = Net()
    optimizer = fresh(net, True)
    recorder = GSNRRecorder(net, every=1)
    recorder.attach(optimizer)
    learn(net, optimizer, range(1))
    assert recorder.rows
    backward(net)
    with pytest.warns(UserWarning, match="GSNRRecorder: no parameter has a gradient.*gradient_release"):
        optimizer.step()


@pytest.mark.parametrize(
    "options", [{"state_dtype": "8bit", "momentum": 0.3}, {"rounding": "kahan"}], ids=str
)
@pytest.mark.parametrize("foreach", [None, True])
def test_parameters_of_few_and_of_many_bits(options: dict[str, Any], foreach: bool | None) -> None:
    """Each moves alike alone and in the company of the others."""
    runs = []
    for released in (False, True):
        torch.manual_seed(0)
        layers = [nn.Linear(70, 70), nn.Linear(70, 4)]
        model = nn.Sequential(layers[0].bfloat16() if "rounding" in options else layers[0], layers[1])
        optimizer = SGDSaI(model.parameters(), lr=0.1, foreach=foreach, **options)
        if released:
            gradient_release(model, optimizer)
        for step in range(6):
            torch.manual_seed(step)
            x = torch.randn(5, 70).to(model[0].weight.dtype)
            model[1](model[0](x).float()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        runs.append([param.detach() for param in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))
