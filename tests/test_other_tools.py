"""State and groups as other tools use them: wrappers, trainers, GAN loops, converters, planners.

Each test rebuilds what a public tool does to an optimizer, and holds the result against ordinary training.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from optimizer_info import WAYS, give_gradients
from sgd_sai import UNLATCHED, SGDSaI, gradient_release
from sgd_sai.quantized import Momentum8
from sgd_sai.update import cpu

SHAPES = (20, 30), (70, 70), (9,), (4, 3)
NARROW: dict[str, Any] = {"state_dtype": "8bit"}


def made(**options: Any) -> tuple[list[nn.Parameter], SGDSaI]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    return params, SGDSaI(params, **{"lr": 0.1, **options})


def step(
    params: list[nn.Parameter], optimizer: Any, which: int, have: tuple[int, ...] = (0, 1, 2, 3)
) -> None:
    """One step, in which only those of the parameters have a gradient."""
    give_gradients(params, which)
    for index, param in enumerate(params):
        if index not in have:
            param.grad = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        optimizer.step()


def assert_equal(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def scales(params: list[nn.Parameter], optimizer: SGDSaI, divisor: str = "gsnr_max") -> list[float]:
    states = [optimizer.state[param] for param in params]
    return [state["gsnr"] / state[divisor] for state in states]


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Entries of other tools in the state


def test_schedule_free_wrapper() -> None:
    """It puts an entry into the state before the first step: the base steps as it does on z alone."""
    wrapper = pytest.importorskip("schedulefree").ScheduleFreeWrapper
    params, base = made()
    wrapped = wrapper(base, momentum=0.9)
    wrapped.train()
    zs, alone = made()
    for which in range(4):
        step(params, wrapped, which)
        step(zs, alone, which)
    for param, z in zip(params, zs, strict=True):
        torch.testing.assert_close(base.state[param]["z"], z.detach())
        assert base.state[param]["gsnr"] == alone.state[z]["gsnr"] > 0
        assert torch.equal(base.state[param]["momentum_buffer"], alone.state[z]["momentum_buffer"])


@pytest.mark.parametrize("when", ["before the first step", "later"])
@pytest.mark.parametrize(
    "options", [{}, NARROW, {"momentum": 0.0}, {"split": 1, "measure_first": True}], ids=str
)
@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
def test_an_entry_of_another_tool_changes_nothing_and_is_saved(
    when: str, options: dict[str, Any], way: str
) -> None:
    """As the slow weights of Lookahead: saved, loaded, and carried on, bit for bit."""
    plain, ours = made(**options, **WAYS[way])
    params, optimizer = made(**options, **WAYS[way])
    for which in range(3):
        if which == (0 if when == "before the first step" else 2):
            for param in params:
                optimizer.state[param]["slow"] = param.detach().clone()
                optimizer.state[param]["count"] = 3
            optimizer.state["calls"] = torch.arange(3)  # of the whole model  # type: ignore[index]
        step(plain, ours, which)
        step(params, optimizer, which)
    assert_equal(params, plain)
    resumed, other = made(**options, **WAYS[way])
    with torch.no_grad():
        for q, p in zip(resumed, params, strict=True):
            q.copy_(p)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(other.state["calls"], torch.arange(3))  # type: ignore[index]
    for which in range(3, 5):
        step(plain, ours, which)
        step(resumed, other, which)
    assert_equal(resumed, plain)
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(optimizer.state[p]["slow"], other.state[q]["slow"])
        assert other.state[q]["count"] == 3


def test_gradient_release_beside_entries_of_another_tool() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, foreign in zip(models, (False, True), strict=True):
        optimizer = SGDSaI(model.parameters(), lr=0.1)
        for param in model.parameters() if foreign else ():
            optimizer.state[param]["z"] = param.detach().clone()
        gradient_release(model, optimizer)
        for which in range(3):
            torch.manual_seed(which)
            model(torch.randn(4, 6)).square().mean().backward()
            optimizer.step()
    assert_equal(*(list(model.parameters()) for model in models))


@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
@pytest.mark.parametrize("options", [{}, {"split": 2}, {"blocks": "group"}], ids=str)
def test_a_momentum_of_zeros_that_processes_share(options: dict[str, Any], way: str) -> None:
    """Hogwild puts it there before the first step: m₁ = g₁ goes into the shared memory."""
    shapes = (20, 30), (4, 3)
    runs = []
    for shared in (False, True):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        optimizer = SGDSaI(params, lr=0.1, **options, **WAYS[way])
        buffers = [torch.zeros_like(param).share_memory_() for param in params]
        for param, buffer in zip(params, buffers, strict=True):
            if shared:
                optimizer.state[param]["momentum_buffer"] = buffer
        for which in range(3):
            give_gradients(params, which)
            optimizer.step()
        if shared:
            assert all(
                optimizer.state[p]["momentum_buffer"] is b for p, b in zip(params, buffers, strict=True)
            )
            assert all(buffer.is_shared() and buffer.any() for buffer in buffers)
        runs.append(params)
    assert_equal(*runs)


@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
def test_a_fresh_parameter_with_a_given_momentum(way: str) -> None:
    """As partial FC has it in each step, for the classes that it draws: the momentum goes on."""
    torch.manual_seed(0)
    body = nn.Parameter(torch.randn(20, 30))
    weights, momenta = torch.randn(50, 8), torch.randn(50, 8)
    optimizer = SGDSaI(
        [{"params": [body]}, {"params": [nn.Parameter(torch.empty(0, 8))]}], lr=0.1, **WAYS[way]
    )
    for which in range(3):
        classes = torch.randperm(50)[:12]
        fresh = nn.Parameter(weights[classes])
        optimizer.state.pop(optimizer.param_groups[1]["params"][0], None)
        optimizer.param_groups[1]["params"] = [fresh]
        optimizer.state[fresh]["momentum_buffer"] = momenta[classes]
        give_gradients([body, fresh], which)
        expected = momenta[classes].lerp(fresh.grad, 0.1)
        before = fresh.detach().clone()
        optimizer.step()
        state = optimizer.state[fresh]
        torch.testing.assert_close(state["momentum_buffer"], expected)
        scale = min(state["gsnr"] / optimizer.state[body]["gsnr"], 1.0)
        torch.testing.assert_close(fresh.detach(), before - 0.1 * scale * expected)
        weights[classes], momenta[classes] = fresh.detach(), state["momentum_buffer"]


def test_a_given_momentum_with_measure_first_and_in_8_bits() -> None:
    """It goes on from the second gradient, and from its codes."""
    params, optimizer = made(measure_first=True, **NARROW)
    given = torch.randn(70, 70)
    codes = Momentum8(torch.zeros(70, 70, dtype=torch.int8), torch.zeros(-(-4900 // 256)))
    codes.write(given)
    optimizer.state[params[1]].update(momentum_buffer=codes.stored, momentum_absmax=codes.absmax)
    optimizer.state[params[2]]["momentum_buffer"] = torch.ones(9)
    step(params, optimizer, 0)
    step(params, optimizer, 1)
    torch.testing.assert_close(
        optimizer.state[params[2]]["momentum_buffer"], torch.ones(9).lerp(params[2].grad, 0.1)
    )
    expected = given.lerp(params[1].grad, 0.1)
    assert (codes.read() - expected).norm() < 0.04 * expected.norm()


# The maximum goes where the scales go


@pytest.mark.parametrize("normalize", [True, "rms"])
@pytest.mark.parametrize("stepped", [False, True], ids=["new", "that has taken a step"])
def test_the_state_of_a_checkpoint_with_the_groups_of_the_new_run(normalize: Any, stepped: bool) -> None:
    """Several trainers keep their own groups. The second block is larger than the maximum, and capped."""
    params, optimizer = made(normalize=normalize)
    step(params, optimizer, 0, have=(0, 2))
    step(params, optimizer, 1)
    saved = through_a_file(optimizer.state_dict())
    others, resumed = made(normalize=normalize)
    if stepped:
        step(others, resumed, 7)
    with torch.no_grad():
        for q, p in zip(others, params, strict=True):
            q.copy_(p)
    resumed.load_state_dict({"state": saved["state"], "param_groups": resumed.state_dict()["param_groups"]})
    for which in (2, 3):
        step(params, optimizer, which)
        step(others, resumed, which)
    assert_equal(others, params)
    assert resumed.normalizers == optimizer.normalizers
    assert resumed.param_groups[0]["gsnr_max"] == optimizer.normalizers["gsnr_max"]


def clear(optimizer: SGDSaI) -> SGDSaI:
    optimizer.state.clear()
    return optimizer


def replace(optimizer: SGDSaI) -> SGDSaI:
    optimizer.state = defaultdict(dict)
    return optimizer


def empty_each(optimizer: SGDSaI) -> SGDSaI:
    for state in optimizer.state.values():
        state.clear()
    return optimizer


def from_its_groups(optimizer: SGDSaI) -> SGDSaI:
    return type(optimizer)(optimizer.param_groups)


def from_its_defaults(optimizer: SGDSaI) -> SGDSaI:
    """As Lightning, Opacus and code for cross-validation make another one."""
    return type(optimizer)(optimizer.param_groups[0]["params"], **optimizer.defaults)


def from_an_empty_state(optimizer: SGDSaI) -> SGDSaI:
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    return optimizer


@pytest.mark.filterwarnings("ignore:SGDSaI")
@pytest.mark.parametrize("options", [{}, {"normalize": "rms", "lr": 1e-3}, NARROW], ids=str)
@pytest.mark.parametrize(
    "anew",
    [clear, replace, empty_each, from_its_groups, from_its_defaults, from_an_empty_state],
    ids=lambda f: f.__name__,
)
def test_begun_anew(anew: Callable[[SGDSaI], SGDSaI], options: dict[str, Any]) -> None:
    """Whoever empties the state, or makes an optimizer from another one, begins as with a new one."""
    params, optimizer = made(**options)
    step(params, optimizer, 0, have=(2,))  # a maximum and a divisor that are far from those of the model
    step(params, optimizer, 1)
    fresh = [nn.Parameter(param.detach().clone()) for param in params]
    optimizer = anew(optimizer)
    other = SGDSaI(fresh, **{"lr": 0.1, **options})
    # From it the bits follow by which momenta of few bits are rounded.
    other.param_groups[0]["rounding_step"] = optimizer.param_groups[0]["rounding_step"]
    for which in (2, 3):
        step(params, optimizer, which)
        step(fresh, other, which)
    assert_equal(params, fresh)
    assert optimizer.normalizers == other.normalizers
    assert scales(params, optimizer) == scales(fresh, other)


def cleared_and_copied(optimizer: SGDSaI) -> SGDSaI:
    optimizer.state.clear()
    return pickle.loads(pickle.dumps(optimizer))


def options_restored(optimizer: SGDSaI) -> SGDSaI:
    """Into an optimizer that is new: only hyper-parameters."""
    other = SGDSaI(optimizer.param_groups[0]["params"])
    saved = optimizer.state_dict()["param_groups"][0]
    other.param_groups[0].update({key: value for key, value in saved.items() if key != "params"})
    return other


def group_shared(optimizer: SGDSaI) -> SGDSaI:
    """With an optimizer that has taken a step on another gradient."""
    other = SGDSaI(optimizer.param_groups)
    step(optimizer.param_groups[0]["params"], optimizer, 5, have=(2,))
    return other


def scales_gone(optimizer: SGDSaI, by: Any = None) -> SGDSaI:
    for state in optimizer.state.values():
        state["gsnr"] = by
        state["momentum_buffer"] = None
    return optimizer


def scales_of_minus_one(optimizer: SGDSaI) -> SGDSaI:
    return scales_gone(optimizer, UNLATCHED)


def scales_gone_and_saved(optimizer: SGDSaI) -> SGDSaI:
    scales_gone(optimizer).load_state_dict(through_a_file(optimizer.state_dict()))
    return optimizer


@pytest.mark.filterwarnings("ignore:SGDSaI", "ignore:state_dict")
@pytest.mark.parametrize("options", [{}, {"normalize": "rms", "lr": 1e-3}, NARROW], ids=str)
@pytest.mark.parametrize(
    "anew",
    [
        cleared_and_copied,
        options_restored,
        group_shared,
        scales_gone,
        scales_of_minus_one,
        scales_gone_and_saved,
    ],
    ids=lambda f: f.__name__,
)
def test_a_divisor_that_no_scale_has_is_not_believed(
    anew: Callable[[SGDSaI], SGDSaI], options: dict[str, Any]
) -> None:
    params, optimizer = made(**options)
    step(params, optimizer, 0, have=(2,))
    optimizer = anew(optimizer)
    params = optimizer.param_groups[0]["params"]
    fresh = [nn.Parameter(param.detach().clone()) for param in params]
    other = SGDSaI(fresh, **{"lr": 0.1, **options})
    # From it the bits follow by which momenta of few bits are rounded.
    other.param_groups[0]["rounding_step"] = optimizer.param_groups[0]["rounding_step"]
    for which in (2, 3):
        step(params, optimizer, which)
        step(fresh, other, which)
    assert optimizer.normalizers == other.normalizers
    assert scales(params, optimizer) == scales(fresh, other)
    assert_equal(params, fresh)


@pytest.mark.filterwarnings("ignore:SGDSaI")
def test_groups_say_what_the_scales_have() -> None:
    """Saved, where another optimizer has written its own into them; loaded, where no scale comes along."""
    params, optimizer = made()
    step(params, optimizer, 0)
    known = optimizer.normalizers
    other = SGDSaI(optimizer.param_groups)
    step(params, other, 1, have=(2,))
    assert optimizer.param_groups[0]["gsnr_max"] == other.normalizers["gsnr_max"] != known["gsnr_max"]
    saved = optimizer.state_dict()
    assert {key: saved["param_groups"][0][key] for key in known} == known
    _, empty = made()
    empty.load_state_dict({**saved, "state": {}})
    assert {empty.param_groups[0][key] for key in known} == {UNLATCHED}


@pytest.mark.filterwarnings("ignore:SGDSaI")
def test_blocks_of_another_run_do_not_change_the_divisor_of_late_ones() -> None:
    """Each block keeps its own; a late one takes that of most."""
    (params, optimizer), (plain, truth), (others, donor) = made(), made(), made()
    step(params, optimizer, 0, have=(0, 1, 2))
    step(plain, truth, 0, have=(0, 1, 2))
    step(others, donor, 0, have=(0, 2))
    optimizer.state[params[0]] = copy.deepcopy(donor.state[others[0]])
    step(params, optimizer, 1)
    step(plain, truth, 1)
    assert scales(params, optimizer)[1:] == scales(plain, truth)[1:]
    assert scales(params, optimizer)[0] == scales(others[:1], donor)[0]


@pytest.mark.parametrize("key", ["gsnr_max", "gsnr_rms"])
@pytest.mark.parametrize("taken", ["none", "gone", "tensor"])
@pytest.mark.parametrize("normalize", [True, "rms"])
def test_a_divisor_that_is_taken_away(key: str, taken: str, normalize: Any) -> None:
    """The other blocks know it; in a tensor it is the same number. Also while a block is still to come."""
    runs = []
    for damaged in (False, True):
        params, optimizer = made(normalize=normalize)
        step(params, optimizer, 0, have=(0, 1, 2))
        state = optimizer.state[params[0]]
        if damaged and taken == "gone":
            del state[key]
        elif damaged:
            state[key] = None if taken == "none" else torch.tensor(state[key], dtype=torch.float64)
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        if damaged:
            optimizer.state[params[1]][key] = None
        step(params, optimizer, 1)
        step(params, optimizer, 2)
        runs.append(params)
    assert_equal(*runs)


def test_a_scale_that_is_a_tensor_or_none_when_all_are_measured_again() -> None:
    params, optimizer = made()
    step(params, optimizer, 0)
    fresh = SGDSaI([nn.Parameter(param.detach().clone()) for param in params], lr=0.1)
    optimizer.state[params[1]]["gsnr"] = torch.tensor(optimizer.state[params[1]]["gsnr"])
    step(params, optimizer, 1)
    optimizer.state[params[2]]["gsnr"] = None
    optimizer.measure_again()
    step(params, optimizer, 2)
    step(fresh.param_groups[0]["params"], fresh, 2)
    assert scales(params, optimizer) == scales(fresh.param_groups[0]["params"], fresh)


@pytest.mark.filterwarnings("ignore:SGDSaI")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("case", ["measure_first", "reset", "of two runs"])
def test_distributed_checkpoints_keep_what_lies_beside_a_scale(case: str, flat: bool, tmp_path: Any) -> None:
    """That a momentum has not begun, and divisors that differ between blocks."""
    options = {"measure_first": case == "measure_first"}
    kind = StateDictOptions(flatten_optimizer_state_dict=flat)

    def new() -> tuple[nn.Module, list[nn.Parameter], SGDSaI]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(70, 70), nn.Linear(70, 5))
        return model, list(model.parameters()), SGDSaI(model.parameters(), lr=0.1, **options)

    model, params, optimizer = new()
    step(params, optimizer, 0)
    if case == "reset":
        for state in optimizer.state.values():
            state["momentum_buffer"] = None
    elif case == "of two runs":
        head = [nn.Parameter(torch.randn(5, 70)), nn.Parameter(torch.randn(5))]
        donor = SGDSaI(head, lr=0.1)
        step(head, donor, 0, have=(0, 1))
        optimizer.state[params[2]] = copy.deepcopy(donor.state[head[0]])
    model.zero_grad()
    dcp.save(get_optimizer_state_dict(model, optimizer, options=kind), checkpoint_id=tmp_path, no_dist=True)
    resumed, others, other = new()
    resumed.load_state_dict(model.state_dict())
    state = get_optimizer_state_dict(resumed, other, options=kind)
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed, other, state, options=kind)
    assert scales(others, other) == scales(params, optimizer)
    for which in (1, 2):
        step(params, optimizer, which)
        step(others, other, which)
    assert_equal(others, params)


def test_a_state_that_was_written_as_json() -> None:
    """Numbers of parameters are strings there."""
    params, optimizer = made(momentum=0.0)
    step(params, optimizer, 0, have=(2,))
    step(params, optimizer, 1)
    others, resumed = made(momentum=0.0)
    resumed.load_state_dict(json.loads(json.dumps(optimizer.state_dict())))
    assert scales(others, resumed) == scales(params, optimizer)
    assert all(isinstance(key, Tensor) for key in resumed.state)


def test_numbers_of_numpy_stay_out_of_the_state() -> None:
    """Or torch would not load the file."""
    params, _ = made()
    given = dict(zip("abcd", np.arange(1.0, 5.0), strict=True))
    for options in ({"eps": np.float64(1e-8)}, {"scale": given}):
        optimizer = SGDSaI(list(zip("abcd", params, strict=True)), lr=0.1, **options)
        step(params, optimizer, 0, have=(0, 1, 2))  # the largest is given for the last one
        assert {type(optimizer.state[params[0]][key]) for key in ("gsnr", "gsnr_max")} == {float}
        through_a_file(optimizer.state_dict())
    again = SGDSaI(optimizer.param_groups)  # whose groups have their names apart
    assert again.param_groups[0]["scale"] is given


@pytest.mark.parametrize("shape", [(6, 1024), (6, 800), (6, 30)], ids=str)
@pytest.mark.parametrize("options", [{}, NARROW], ids=str)
def test_another_split(shape: tuple[int, int], options: dict[str, Any]) -> None:
    """The parts are measured; a momentum in 8 bits, whose blocks follow the parts, begins anew."""
    params = [nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(9, 2))]
    optimizer = SGDSaI([{"params": params[:1]}, {"params": params[1:]}], lr=0.1, **options)
    for which, split in enumerate((1, 3, 2, 3, 1)):
        optimizer.param_groups[0]["split"] = split
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        step(params, optimizer, which, have=(0, 1))
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        fresh = [nn.Parameter(param.detach().clone()) for param in params]
        other = SGDSaI([{"params": fresh[:1], "split": split}, {"params": fresh[1:]}], lr=0.1, **options)
        step(fresh, other, which, have=(0, 1))
        keys = {key for key in optimizer.state[params[0]] if re.fullmatch(r"gsnr(_\d)?", key)}
        assert len(keys) == split
        assert all(optimizer.state[params[0]][key] == other.state[fresh[0]][key] > 0 for key in keys)


@pytest.mark.filterwarnings("ignore:SGDSaI", "ignore:state_dict")
@pytest.mark.parametrize("frozen", [False, True])
def test_another_split_of_a_parameter_without_a_gradient(frozen: bool) -> None:
    """Its old parts are no scales any more: not for the maximum, nor in a checkpoint."""
    params = [nn.Parameter(torch.ones(6, 70)) for _ in range(3)]
    optimizer = SGDSaI(params, lr=0.1, split=3)
    step(params, optimizer, 0, have=(0, 1, 2))
    params[2].requires_grad_(not frozen)
    optimizer.param_groups[0]["split"] = 2
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    step(params, optimizer, 1, have=(0, 1))
    fresh = [nn.Parameter(torch.ones(6, 70)) for _ in range(3)]
    other = SGDSaI(fresh, lr=0.1, split=2)
    step(fresh, other, 1, have=(0, 1))
    assert optimizer.normalizers == other.normalizers
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))


@pytest.mark.filterwarnings("ignore:SGDSaI")
def test_a_momentum_of_zeros_in_a_checkpoint_of_before_had_begun() -> None:
    """It said so where one had not."""
    params, optimizer = made()
    step(params, optimizer, 0)
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()
    saved = optimizer.state_dict()
    for entries in saved["state"].values():
        for key in ("gsnr_max", "gsnr_rms", "momentum_begun"):
            del entries[key]
    del saved["param_groups"][0]["momentum_order"]
    others, resumed = made()
    resumed.load_state_dict(through_a_file(saved))
    step(others, resumed, 1)
    for param in others:
        torch.testing.assert_close(resumed.state[param]["momentum_buffer"], 0.1 * param.grad)


@pytest.mark.parametrize("lost", [(0,), (0, 2), (0, 1, 2)], ids=str)
def test_the_largest_alone_is_taken_away(lost: tuple[int, ...]) -> None:
    """The others know it, or the groups do."""
    (params, optimizer), (plain, truth) = made(), made()
    for each, of in ((optimizer, params), (truth, plain)):
        step(of, each, 0, have=(0, 1, 2))
    for index in lost:
        del optimizer.state[params[index]]["gsnr_max"]
    assert optimizer.normalizers == truth.normalizers
    for which, have in ((1, (3,)), (2, (0, 1, 2, 3))):
        step(params, optimizer, which, have)
        step(plain, truth, which, have)
    assert_equal(params, plain)


def test_a_full_state_of_a_run_without_momentum() -> None:
    """Torch fills it with the zeros of the optimizer that loads it; they have not begun."""
    kind = StateDictOptions(full_state_dict=True)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = SGDSaI(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["momentum"] = 0.0
    params = list(model.parameters())
    step(params, optimizer, 0, have=(0, 1))
    optimizer.zero_grad()
    resumed = copy.deepcopy(model)
    other = SGDSaI(resumed.parameters(), lr=0.1)
    saved = get_optimizer_state_dict(model, optimizer, options=kind)
    set_optimizer_state_dict(resumed, other, saved, options=kind)
    for each, of in ((optimizer, params), (other, list(resumed.parameters()))):
        each.param_groups[0]["momentum"] = 0.9
        step(of, each, 1, have=(0, 1))
    assert_equal(list(resumed.parameters()), params)


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 3).requires_grad_(False), nn.LazyLinear(3)], ids=["frozen", "lazy"]
)
def test_a_state_of_other_tools_alone(model: nn.Module) -> None:
    optimizer = SGDSaI(model.parameters(), lr=0.1)
    optimizer.state[model.weight]["slow"] = torch.zeros(3)
    optimizer.state["²"] = torch.zeros(3)  # type: ignore[index]
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(optimizer.state[model.weight]["slow"], torch.zeros(3))
    assert torch.equal(optimizer.state["²"], torch.zeros(3))  # type: ignore[index]


def test_the_groups_alone_are_replaced() -> None:
    """The state knows the divisors."""
    for normalize in (True, "rms"):
        params, optimizer = made(normalize=normalize)
        plain, truth = made(normalize=normalize)
        for each, of in ((optimizer, params), (truth, plain)):
            step(of, each, 0, have=(0, 2))
            step(of, each, 1)
        optimizer.param_groups.clear()
        optimizer.add_param_group({"params": params[:1]})
        optimizer.add_param_group({"params": params[1:]})
        for which in (2, 3):
            step(params, optimizer, which)
            step(plain, truth, which)
        assert_equal(params, plain)


def test_the_state_of_a_parameter_is_handed_on() -> None:
    """As pruning and growing do: a new tensor takes over what the old one had, in another optimizer too."""
    params, optimizer = made()
    step(params, optimizer, 0, have=(0, 2))
    step(params, optimizer, 1)
    new = [nn.Parameter(param.detach().clone()) for param in params]
    other = SGDSaI(new, lr=0.1)
    for old, param in zip(params, new, strict=True):
        other.state[param] = copy.deepcopy(optimizer.state[old])
    step(params, optimizer, 2)
    step(new, other, 2)
    assert_equal(params, new)


def test_an_optimizer_that_was_pickled_before() -> None:
    """It has the normalisers in its groups alone."""
    params, optimizer = made(normalize="rms")
    step(params, optimizer, 0, have=(0, 2))
    step(params, optimizer, 1)
    known = optimizer.normalizers
    for param in params:
        for key in known:
            del optimizer.state[param][key]
    old = pickle.dumps((params, optimizer))
    others, again = pickle.loads(old)
    assert again.normalizers == known
    step(others, again, 2)


def test_defaults_are_the_arguments_of_the_constructor() -> None:
    _, optimizer = made()
    assert set(optimizer.defaults) == set(SGDSaI.__init__.__annotations__) - {
        "params",
        "process_group",
        "return",
    }


# None for a buffer


def gone(state: dict[str, Any], key: str) -> None:
    state.pop(key, None)


def none(state: dict[str, Any], key: str) -> None:
    state[key] = None


@pytest.mark.parametrize("reset", [gone, none], ids=lambda f: f.__name__)
@pytest.mark.parametrize("which", [(0, 1, 2, 3), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, NARROW, {"measure_first": True}, {"state_dtype": torch.bfloat16}], ids=str
)
@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
def test_a_momentum_that_is_reset(
    reset: Any, which: tuple[int, ...], options: dict[str, Any], way: str
) -> None:
    """The next gradient begins it, and the others go on; saved in between, too."""
    params, optimizer = made(**options, **WAYS[way])
    for number in range(3):
        step(params, optimizer, number)
    momenta = [copy.deepcopy(optimizer.state[param]) for param in params]
    for index in which:
        reset(optimizer.state[params[index]], "momentum_buffer")
    resumed, other = made(**options, **WAYS[way])
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    with torch.no_grad():
        for q, p in zip(resumed, params, strict=True):
            q.copy_(p)
    before = [param.detach().clone() for param in params]
    step(params, optimizer, 3)
    step(resumed, other, 3)
    assert_equal(resumed, params)
    for index, (param, old) in enumerate(zip(params, momenta, strict=True)):
        state = optimizer.state[param]
        assert (state["gsnr"], state["gsnr_max"]) == (old["gsnr"], old["gsnr_max"])
        if index in which:
            scale = state["gsnr"] / state["gsnr_max"]
            expected = before[index] - 0.1 * scale * param.grad
            torch.testing.assert_close(param.detach(), expected, rtol=2e-2, atol=2e-2 if options else 1e-6)
        else:
            assert not torch.equal(state["momentum_buffer"], old["momentum_buffer"])


def test_a_compensation_that_is_reset_and_a_scale_that_is_taken_away() -> None:
    params = [nn.Parameter(torch.randn(20, 30).bfloat16()), nn.Parameter(torch.randn(9).bfloat16())]
    optimizer = SGDSaI(params, lr=0.1, rounding="kahan")
    for number in range(2):
        step(params, optimizer, number, have=(0, 1))
    raw = optimizer.state[params[1]]["gsnr"]
    momentum = optimizer.state[params[1]]["momentum_buffer"].clone()
    optimizer.state[params[0]]["compensation"] = None
    optimizer.state[params[1]]["gsnr"] = None
    step(params, optimizer, 2, have=(0, 1))
    assert optimizer.state[params[0]]["compensation"].any()
    assert optimizer.state[params[1]]["gsnr"] not in (raw, UNLATCHED)
    expected = momentum.lerp(params[1].grad.float(), 0.1)
    torch.testing.assert_close(optimizer.state[params[1]]["momentum_buffer"], expected)


def test_an_8_bit_momentum_that_is_replaced_by_zeros_or_loses_its_scales() -> None:
    params, optimizer = made(**NARROW)
    plain, wide = made()
    for each, of in ((optimizer, params), (wide, plain)):
        step(of, each, 0)
        for param in of:
            each.state[param]["momentum_buffer"] = torch.zeros_like(param)
    with torch.no_grad():
        for p, q in zip(params, plain, strict=True):
            p.copy_(q)
    step(params, optimizer, 1)
    step(plain, wide, 1)
    assert_equal(params, plain)
    params, optimizer = made(**NARROW)
    step(params, optimizer, 0)
    del optimizer.state[params[1]]["momentum_absmax"]
    with pytest.raises(ValueError, match="int8 has no momentum_absmax"):
        step(params, optimizer, 1)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("floating_alone", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_an_8_bit_state_that_is_cast(dtype: torch.dtype, floating_alone: bool, saved: bool) -> None:
    """Codes are no numbers, whatever their dtype: taken for those, a step would be 30 times as long."""

    def cast(value: Any) -> Any:
        chosen = isinstance(value, Tensor) and (value.is_floating_point() or not floating_alone)
        return value.to(dtype) if chosen else value

    runs = []
    for is_cast in (False, True):
        params, optimizer = made(**NARROW)
        step(params, optimizer, 0)
        if is_cast and saved:
            held = optimizer.state_dict()
            held["state"] = {n: {k: cast(v) for k, v in of.items()} for n, of in held["state"].items()}
            if not floating_alone:
                with pytest.raises(ValueError, match="'momentum_absmax', but no momentum in 8 bits"):
                    optimizer.load_state_dict(held)
                return
            optimizer.load_state_dict(held)
        elif is_cast:
            for state in optimizer.state.values():
                state.update({key: cast(value) for key, value in state.items()})
        for which in (1, 2):
            step(params, optimizer, which)
        runs.append((params, optimizer.state[params[1]]))
    (exact, _), (params, state) = runs
    assert (state["momentum_buffer"].dtype, state["momentum_absmax"].dtype) == (torch.int8, torch.float32)
    for param, other in zip(params, exact, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=0.02)


@pytest.mark.parametrize("options", [{}, NARROW, {"rounding": "kahan"}], ids=str)
@pytest.mark.parametrize("way", ["for-loop", "foreach", "default"])
def test_a_momentum_that_is_switched_off_and_on(way: str, options: dict[str, Any]) -> None:
    """The formula holds throughout: without momentum m_t = g_t, also in a buffer, with which it goes on."""
    params, optimizer = made(**options, **WAYS[way])
    step(params, optimizer, 0)
    before = [param.detach().clone() for param in params]
    optimizer.param_groups[0]["momentum"] = 0.0
    step(params, optimizer, 1)
    for param, old, scale in zip(params, before, scales(params, optimizer), strict=True):
        torch.testing.assert_close(param.detach(), old - 0.1 * scale * param.grad)
    optimizer.param_groups[0]["momentum"] = 0.9
    without = [param.grad.clone() for param in params]
    resumed, other = made(**options, **WAYS[way])
    for mine, yours in zip(resumed, params, strict=True):
        mine.data.copy_(yours.data)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    step(params, optimizer, 2)
    for param, g_t in zip(params, without, strict=True):
        state = optimizer.state[param]
        m_t = state["momentum_buffer"]
        if m_t.dtype == torch.int8:
            m_t = Momentum8(m_t, state["momentum_absmax"]).read()
        rough = 0.035 * m_t.abs().max() if "momentum_absmax" in state else 1e-6
        torch.testing.assert_close(m_t, g_t.lerp(param.grad, 0.1), rtol=0, atol=float(rough))
    step(resumed, other, 2)
    assert_equal(resumed, params)


# Groups that others hold too


def test_a_group_is_the_dict_that_was_given() -> None:
    """An outer optimizer or a scheduler that shares it sets lr = 0, and nothing moves."""
    params, _ = made()
    group: dict[str, Any] = {"params": iter(params[:2]), "lr": 0.1}
    optimizer = SGDSaI([group])
    added: dict[str, Any] = {"params": (param for param in params[2:])}
    optimizer.add_param_group(added)
    assert optimizer.param_groups[0] is group
    assert optimizer.param_groups[1] is added
    assert group["params"] == params[:2]  # a list now, as torch makes it
    assert len(torch.optim.SGD([group, added], lr=0.1).param_groups[1]["params"]) == 2
    before = [param.detach().clone() for param in params]
    for each in (group, added):
        each["lr"] = 0.0
    step(params, optimizer, 0)
    assert_equal(params, [nn.Parameter(old) for old in before])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_group_that_is_made_of_the_defaults(rounding: str) -> None:
    """And put into the list as it is."""
    runs = []
    for appended in (False, True):
        params, _ = made()
        params = [nn.Parameter(param.detach().bfloat16()) for param in params]
        optimizer = SGDSaI(params[:2], lr=0.1, rounding=rounding)
        step(params, optimizer, 0)
        if appended:
            optimizer.param_groups.append({"params": params[2:], **optimizer.defaults})
        else:
            optimizer.add_param_group({"params": params[2:], "rounding_step": 0})
        step(params, optimizer, 1)
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        step(params, optimizer, 2)
        runs.append(params)
    assert_equal(*runs)


def test_a_group_that_is_refused_can_be_mended() -> None:
    """Its generator is not lost."""
    params, _ = made()
    optimizer = SGDSaI(params[:1])
    group: dict[str, Any] = {"params": iter([("b", params[1])]), "momentum": 5.0}
    with pytest.raises(ValueError, match=r"momentum: given 5\.0"):
        optimizer.add_param_group(group)
    group.update(momentum=0.5, params=[param for _, param in group["params"]])
    optimizer.add_param_group(group)
    assert optimizer.param_groups[1]["params"] == params[1:2]


# Parameters without a shape, or without a name


@pytest.mark.parametrize("options", [{}, {"split": 3}, NARROW, {"blocks": "group"}], ids=str)
def test_lazy_modules(options: dict[str, Any]) -> None:
    """Before their first forward pass the parameters have no shape; SGD takes them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(90), nn.Tanh(), nn.Linear(90, 3))
    optimizer = SGDSaI(model.parameters(), lr=0.1, **options)
    assert optimizer.state_dict()["state"] == {}
    with pytest.raises(ValueError, match="0 of a shape that is not known yet is given twice"):
        optimizer.add_param_group({"params": [model[0].weight]})
    model[2](torch.randn(5, 90)).square().mean().backward()
    with pytest.warns(UserWarning, match="parameter 0 of its group, of a shape that is not known yet"):
        optimizer.step()
    assert set(optimizer.state_dict()["state"]) == {2, 3}
    optimizer.zero_grad()
    model(torch.randn(5, 60)).square().mean().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        optimizer.step()
    keys = [f"gsnr_{part}" for part in range(3)] if options.get("split") else ["gsnr"]
    assert all(optimizer.state[param][key] > 0 for param in model.parameters() for key in keys)
    lazy = nn.Sequential(nn.LazyLinear(90), nn.Tanh(), nn.Linear(90, 3))
    other = SGDSaI(lazy.parameters(), lr=9.0, **options)
    other.load_state_dict(through_a_file(optimizer.state_dict()))  # before the first forward pass
    lazy(torch.zeros(1, 60))
    lazy.load_state_dict(model.state_dict())
    for each, of in ((model, optimizer), (lazy, other)):
        of.zero_grad()
        torch.manual_seed(1)
        each(torch.randn(5, 60)).square().mean().backward()
        of.step()
    assert_equal(list(lazy.parameters()), list(model.parameters()))


@pytest.mark.filterwarnings("ignore:SGDSaI")
def test_gradient_release_of_lazy_modules() -> None:
    """They are released once they have a shape."""
    runs = []
    for release in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.LazyLinear(9), nn.Linear(9, 3))
        optimizer = SGDSaI(model.parameters(), lr=0.1)
        if release:
            gradient_release(model, optimizer)
        for which in range(4):
            torch.manual_seed(which)
            model(torch.randn(5, 6)).square().mean().backward()
            assert (type(model[0].weight.grad) is Tensor) == (not release or which < 1)
            optimizer.step()
            optimizer.zero_grad()
        runs.append(list(model.parameters()))
    assert_equal(*runs)


def test_a_parameter_that_is_appended_to_a_group_with_names() -> None:
    params, _ = made()
    optimizer = SGDSaI(list(zip("abc", params[:3], strict=True)), lr=0.1)
    optimizer.param_groups[0]["params"].append(params[3])
    give_gradients(params, 0)
    params[1].grad = params[3].grad = None
    with pytest.warns(UserWarning, match=r"parameter 'b', parameter 3 of its group, of shape \(4, 3\)"):
        optimizer.step()
    step(params, optimizer, 1)
    assert optimizer.state[params[3]]["gsnr"] > 0
    given = SGDSaI([("a", params[0])], scale={"a": 3.0})
    given.param_groups[0]["params"].append(params[1])
    give_gradients(params, 0)
    with pytest.raises(ValueError, match=r"for 1 names and 2 tensor\(s\) in a group: some were appended"):
        given.step()


# A step without data


GIVEN = {"0.weight": 5.0, "0.bias": 2.0, "1.weight": 8.0, "1.bias": 1.0}


@pytest.fixture(params=["fake", "meta"])
def without_data(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Parameters and gradients that have a shape and nothing else."""
    if request.param == "meta":
        yield torch.device("meta")
    else:
        with FakeTensorMode():
            yield torch.device("cpu")


@pytest.mark.parametrize("scale", ["sqrt_d", GIVEN], ids=["sqrt_d", "by name"])
@pytest.mark.parametrize(
    "options",
    [{}, NARROW, {"momentum": 0.0}, {"measure_first": True}, {"foreach": True}, {"weight_decay": 0.1},
     {"foreach": False, "fused": False}, {"normalize": False}, {"normalize": 3.0}],
    ids=str,
)  # fmt: skip
def test_a_step_without_data(without_data: torch.device, scale: Any, options: dict[str, Any]) -> None:
    """As planners take it, to see the memory of a step: where a scale needs no gradient, neither does it."""
    with without_data:
        model = nn.Sequential(nn.Linear(70, 70), nn.Linear(70, 4))
        optimizer = SGDSaI(model.named_parameters(), lr=0.1, scale=scale, **options)
        for _ in range(2):
            model(torch.randn(3, 70)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    found = {name: optimizer.state[param]["gsnr"] for name, param in model.named_parameters()}
    expected = (
        GIVEN if scale is GIVEN else {name: param.numel() ** 0.5 for name, param in model.named_parameters()}
    )
    assert found == expected
    assert optimizer.normalizers == {"gsnr_max": max(expected.values()), "gsnr_rms": UNLATCHED}
    kept = {key: value for state in optimizer.state.values() for key, value in state.items()}
    assert all(isinstance(value, float | Tensor) for value in kept.values())
    assert ("momentum_buffer" in kept) == (optimizer.defaults["momentum"] != 0)


@pytest.mark.parametrize("fused", [None, True])
def test_a_step_without_data_asks_for_no_kernel(fused: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel reads and writes memory; not every version of torch can pretend to."""

    def kernel(*given: Any, **options: Any) -> None:
        raise AssertionError("asked for")

    monkeypatch.setattr(cpu, "update", kernel)
    with FakeTensorMode():
        param = nn.Parameter(torch.empty(70, 70))
        optimizer = SGDSaI([param, nn.Parameter(torch.empty(3))], lr=0.1, scale="sqrt_d", fused=fused)
        param.grad = torch.empty(70, 70)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            optimizer.step()
    assert optimizer.state[param]["gsnr"] == 70.0


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": "sqrt_d", "normalize": "rms"}, {"scale": lambda moments: 1.0}],
    ids=["gsnr", "rms", "rule"],
)
def test_what_needs_data_says_so(without_data: torch.device, options: dict[str, Any]) -> None:
    with without_data:
        model = nn.Linear(7, 3)
        optimizer = SGDSaI(model.named_parameters(), lr=0.1, **options)
        model(torch.randn(3, 7)).sum().backward()
        with pytest.raises(RuntimeError, match=r"'weight' has no data .*'sqrt_d'.*`sgd-sai memory`"):
            optimizer.step()


def test_memory_tracker_of_torch() -> None:
    tracker = pytest.importorskip("torch.distributed._tools.mem_tracker").MemTracker()
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(70, 70), nn.Linear(70, 4))
        optimizer = SGDSaI(model.parameters(), lr=0.1, scale="sqrt_d")
        tracker.track_external(model, optimizer)
        with tracker:
            model(torch.randn(3, 70)).sum().backward()
            optimizer.step()
    kinds = tracker.get_tracker_snapshot("current")[torch.device("cpu")]
    states = {str(kind): count for kind, count in kinds.items()}
    elements = sum(param.numel() for param in model.parameters())
    assert any(kind.endswith("OPT") and count >= 4 * elements for kind, count in states.items()), states


# Precision that changes


def test_a_model_that_becomes_float16_after_stochastic_rounding() -> None:
    params = [nn.Parameter(torch.randn(20, 30).bfloat16()), nn.Parameter(torch.randn(9).bfloat16())]
    optimizer = SGDSaI(params, lr=0.1, rounding="stochastic")
    step(params, optimizer, 0, have=(0, 1))
    for param in params:
        param.data = param.data.half()
        param.grad = None
    with pytest.raises(
        ValueError, match=r"rounding: given 'stochastic' for parameter 0 .* float16; allowed: 'kahan'"
    ):
        step(params, optimizer, 1, have=(0, 1))


def test_the_momentum_of_adamw_goes_on() -> None:
    """Its exp_avg is the same average of gradients, and its checkpoint is refused with what to do."""
    params, _ = made()
    adamw = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95))
    for number in range(3):
        step(params, adamw, number)
    averages = {param: state["exp_avg"].clone() for param, state in adamw.state.items()}
    optimizer = SGDSaI(params, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"is another optimizer's.*begin with a new SGDSaI.*transfer_lr"):
        optimizer.load_state_dict(adamw.state_dict())
    for param, average in averages.items():
        optimizer.state[param]["momentum_buffer"] = average.clone()
    step(params, optimizer, 3)
    for param, average in averages.items():
        torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], average.lerp(param.grad, 0.1))
