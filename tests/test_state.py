"""State: saved after any step and loaded, training goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import copy
import functools
import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from optimizer_info import INPUTS, WAYS, give_gradients, parameters
from sgd_sai import UNLATCHED, SGDSaI
from sgd_sai.gsnr import sqrt_d


def late_gradients(params: list[nn.Parameter], step: int) -> None:
    """Fresh ones, but block 1 has none before step 1, block 2 zeros before 2, block 3 NaNs before 3."""
    give_gradients(params, step)
    if step < 1:
        params[1].grad = None
    if step < 2:
        params[2].grad.zero_()
    if step < 3:
        params[3].grad.fill_(torch.nan)


def steps(optimizer: SGDSaI, params: list[nn.Parameter], which: range) -> None:
    for step in which:
        late_gradients(params, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of blocks that are still unlatched
            optimizer.step()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("saved_after", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("options", ["decay", "tutorial", "release 1.0.3", "tensor lr", "momentum 0"])
def test_resumes_bit_for_bit(saved_after: int, dtype: torch.dtype, options: str) -> None:
    whole = parameters(dtype)
    optimizer = SGDSaI(whole, **copy.deepcopy(INPUTS[options]))
    steps(optimizer, whole, range(saved_after))
    resumed = [nn.Parameter(p.detach().clone()) for p in whole]
    saved = through_a_file(optimizer.state_dict())
    steps(optimizer, whole, range(saved_after, 8))

    other = SGDSaI(resumed, lr=9.0)
    other.load_state_dict(saved)
    steps(other, resumed, range(saved_after, 8))
    for p, q in zip(whole, resumed, strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, value in optimizer.state[p].items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == other.state[q][key].dtype
                assert torch.equal(value, other.state[q][key])
            else:
                assert value == other.state[q][key]
    assert optimizer.param_groups[0]["gsnr_max"] == other.param_groups[0]["gsnr_max"]


def test_split_blocks_resume_bit_for_bit() -> None:
    whole = [nn.Parameter(torch.randn(6, 5))]
    optimizer = SGDSaI(whole, split=3)
    resumed = [nn.Parameter(whole[0].detach().clone())]
    give_gradients(whole, 0)
    whole[0].grad[2:4] = 0.0
    with pytest.warns(UserWarning, match="SGDSaI: 1 parameter"):
        optimizer.step()
    resumed[0].data.copy_(whole[0].data)
    other = SGDSaI(resumed, split=3)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for step in range(1, 4):
        for params, each in ((whole, optimizer), (resumed, other)):
            give_gradients(params, step)
            each.step()
    assert torch.equal(whole[0], resumed[0])


def test_a_state_without_later_options_takes_the_optimizers_own() -> None:
    """What a checkpoint of an older version of SGDSaI lacks is an option that it did not have."""
    params = parameters()
    optimizer = SGDSaI(params)
    steps(optimizer, params, range(4))
    saved = optimizer.state_dict()
    for option in ("foreach", "fused", "capturable", "differentiable", "split"):
        del saved["param_groups"][0][option]
    other = SGDSaI(parameters(), foreach=True)
    other.load_state_dict(saved)
    assert other.param_groups[0]["foreach"] is True
    assert other.param_groups[0]["split"] == 1
    other.step()


def test_continues_a_checkpoint_of_release_1_0_3(release: Any) -> None:
    """Bit patterns differ, arithmetic does not: 1e-6 after 20 more steps, from its own file."""
    theirs, ours = parameters()[:3], parameters()[:3]
    old = release.SGD_sai(theirs, lr=1e-3, weight_decay=0.1)
    for step in range(5):
        give_gradients(theirs, step)
        old.step()
    for p, q in zip(theirs, ours, strict=True):
        q.data.copy_(p.data)
    new = SGDSaI(ours)
    new.load_state_dict(through_a_file(old.state_dict()))
    assert new.param_groups[0]["lr"] == 1e-3
    assert new.param_groups[0]["normalize"] is False
    for step in range(5, 25):
        give_gradients(theirs, step)
        give_gradients(ours, step)
        old.step()
        new.step()
    for p, q in zip(theirs, ours, strict=True):
        assert (p - q).norm() <= 1e-6 * p.norm()


def of_adamw(state: dict[str, Any]) -> dict[str, Any]:
    params = parameters()
    adamw = torch.optim.AdamW(params)
    give_gradients(params, 0)
    adamw.step()
    return adamw.state_dict()


def of_sgd(state: dict[str, Any]) -> dict[str, Any]:
    params = parameters()
    sgd = torch.optim.SGD(params, momentum=0.9)
    give_gradients(params, 0)
    sgd.step()
    return sgd.state_dict()


def of_rmsprop(state: dict[str, Any]) -> dict[str, Any]:
    """With momentum it has all options of release 1.0.3; before its first step it has no state either."""
    return torch.optim.RMSprop(parameters(), momentum=0.9, eps=1e-8).state_dict()


def of_muon(state: dict[str, Any]) -> dict[str, Any]:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    matrices = [nn.Parameter(torch.ones(3, 3)) for _ in range(4)]
    return torch.optim.Muon(matrices).state_dict()


def fewer_parameters(state: dict[str, Any]) -> dict[str, Any]:
    state["param_groups"][0]["params"].pop()
    return state


def fewer_groups(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "param_groups": []}


def other_shape(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][0]["momentum_buffer"] = torch.zeros(3, 3)
    return state


def state_of_adamw(state: dict[str, Any]) -> dict[str, Any]:
    """Options of the new run, as trainers have it that keep their own."""
    return {**state, "state": of_adamw(state)["state"]}


def state_of_a_split(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][2]["gsnr_1"] = 3.0
    return state


def gsnr_of_many(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][2]["gsnr"] = torch.ones(3)
    return state


def complex_momentum(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][0]["momentum_buffer"] = torch.zeros(20, 9, dtype=torch.complex64)
    return state


def eight_bits_alone(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][0]["momentum_buffer"] = torch.zeros(20, 9, dtype=torch.int8)
    return state


def scales_alone(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][0]["momentum_absmax"] = torch.zeros(1)
    return state


def of_one_more(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][17] = state["state"][0]
    return state


def no_dict(state: dict[str, Any]) -> Any:
    return [state]


def no_state(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "state": None}


def no_entries(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][1] = 3.0
    return state


def no_groups(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "param_groups": None}


def no_params(state: dict[str, Any]) -> dict[str, Any]:
    del state["param_groups"][0]["params"]
    return state


def truncated(state: dict[str, Any]) -> dict[str, Any]:
    return {"state": state["state"]}


MISFITS = {
    of_adamw: r"is another optimizer's, since its groups lack \['momentum'\]",
    of_sgd: r"is another optimizer's, since its groups lack \['eps'\].*begin with a new SGDSaI",
    of_rmsprop: "is another optimizer's, since its groups have .*'alpha'",
    of_muon: "is another optimizer's, since its groups have .*'nesterov'",
    state_of_adamw: "holds no 'gsnr'; it is another optimizer's.*begin with a new SGDSaI",
    state_of_a_split: r"parameter 2 of its group.*holds \['gsnr_1'\] where split=1 keeps \['gsnr'\]",
    gsnr_of_many: r"parameter 2 of its group.*gsnr is a tensor of shape \(3,\)",
    complex_momentum: "momentum_buffer is of torch.complex64, the parameter of torch.float32",
    eight_bits_alone: "parameter 0 of its group.*lacks 'momentum_absmax'",
    scales_alone: "parameter 0 of its group.*holds 'momentum_absmax', but no momentum in 8 bits",
    of_one_more: r"has state of \['17'\], which are in no group",
    no_dict: "given list; allowed: a dict",
    no_state: "its 'state' is not a dict of dicts",
    no_entries: "its 'state' is not a dict of dicts",
    no_groups: "its 'param_groups' is not a list of dicts",
    no_params: "its 'param_groups' is not a list of dicts with 'params'",
    fewer_parameters: r"groups of \[3\] parameters; the optimizer has groups of \[4\]",
    fewer_groups: r"groups of \[\] parameters",
    other_shape: r"parameter 0 of its group.*momentum_buffer is \(3, 3\), the parameter \(20, 9\)",
    truncated: r"has \['state'\]; it must have",
}


@pytest.mark.parametrize("misfit", MISFITS, ids=lambda f: f.__name__)
def test_a_state_that_does_not_fit_changes_nothing(misfit: Any) -> None:
    params, twin = parameters(), parameters()
    optimizer, untouched = SGDSaI(params, lr=0.1), SGDSaI(twin, lr=0.1)
    for each, of in ((optimizer, params), (untouched, twin)):
        steps(each, of, range(4))
    with pytest.raises(ValueError, match=MISFITS[misfit]):
        optimizer.load_state_dict(misfit(copy.deepcopy(optimizer.state_dict())))
    for each, of in ((optimizer, params), (untouched, twin)):
        steps(each, of, range(4, 7))
    assert all(torch.equal(p, q) for p, q in zip(params, twin, strict=True))


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


def learn(net: nn.Module, optimizer: SGDSaI, which: range) -> None:
    for step in which:
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("way", ["for-loop", "default"])
def test_asking_for_the_state_before_training_changes_nothing(way: str) -> None:
    """torch.distributed.checkpoint completes the state by a step with zero gradients and lr = 0."""
    plain, asked = model(), model()
    one, two = (SGDSaI(net.parameters(), lr=0.1, weight_decay=0.1, **WAYS[way]) for net in (plain, asked))
    state = get_optimizer_state_dict(asked, two)
    assert set(state["state"]) == {name for name, _ in asked.named_parameters()}
    assert all(s["gsnr"] == UNLATCHED and not s["momentum_buffer"].any() for s in state["state"].values())
    assert two.param_groups[0]["lr"] == 0.1
    learn(plain, one, range(5))
    learn(asked, two, range(5))
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), asked.parameters(), strict=True))


def test_distributed_checkpoint_state_resumes_bit_for_bit() -> None:
    whole = model()
    optimizer = SGDSaI(whole.parameters(), lr=0.1, weight_decay=0.1)
    learn(whole, optimizer, range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(whole, optimizer))
    resumed = model(1)
    resumed.load_state_dict(whole.state_dict())
    other = SGDSaI(resumed.parameters(), lr=9.0)
    set_optimizer_state_dict(resumed, other, saved)
    learn(whole, optimizer, range(3, 6))
    learn(resumed, other, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("flat", [False, True])
def test_a_distributed_checkpoint_that_was_saved_before(flat: bool, tmp_path: Path) -> None:
    """It has the normalisers in its groups alone. Loaded key by key it lacks entries, and that is allowed."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    whole = model()
    optimizer = SGDSaI(whole.parameters(), lr=0.01, normalize="rms", weight_decay=0.1)
    learn(whole, optimizer, range(3))
    saved = get_optimizer_state_dict(whole, optimizer, options=options)
    if flat:
        saved = {key: of for key, of in saved.items() if not re.match(r"state\..*\.gsnr_(max|rms)", key)}
    for entries in () if flat else saved["state"].values():
        del entries["gsnr_max"], entries["gsnr_rms"]
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    resumed = model(1)
    resumed.load_state_dict(whole.state_dict())
    other = SGDSaI(resumed.parameters(), lr=9.0)
    state = get_optimizer_state_dict(resumed, other, options=options)
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(state, checkpoint_id=tmp_path, planner=planner, no_dist=True)
    set_optimizer_state_dict(resumed, other, state, options=options)
    assert other.normalizers == optimizer.normalizers
    learn(whole, optimizer, range(3, 6))
    learn(resumed, other, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_raw_state_that_goes_over_to_the_papers_form_descends() -> None:
    """A state of release 1.0.3 has no maximum; it is that of the G_snr it has."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = SGDSaI([param], lr=0.1)
    group = {"lr": 0.1, "momentum": 0.9, "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    state = {"momentum_buffer": torch.ones(4), "gsnr": 3.0}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": [group]})
    optimizer.param_groups[0]["normalize"] = True
    param.grad = torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((4,), 0.9))
    optimizer.param_groups[0]["normalize"] = "rms"
    with pytest.raises(ValueError, match="normalize: 'rms' divides by a number that the state lacks"):
        optimizer.step()


def test_a_rule_that_is_an_object_is_saved_by_its_class() -> None:
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = SGDSaI([param], scale=functools.partial(max, 1.0, key=lambda _: 1.0))
    assert optimizer.state_dict()["param_groups"][0]["scale"] == "functools.partial"


@pytest.mark.parametrize(
    ("options", "message"), [({"lr": -1}, "lr: given -1"), ({"split": 4}, "split: given 4")]
)
def test_a_group_of_one_tensor_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGDSaI([{"params": torch.nn.Parameter(torch.ones(6)), **options}])


def test_eight_bits_under_another_default_dtype() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        param = torch.nn.Parameter(torch.ones(64, 64))
        optimizer = SGDSaI([param], state_dtype="8bit")
        param.grad = torch.randn(64, 64)
        optimizer.step()
        optimizer.step()
        assert optimizer.state[param]["momentum_absmax"].dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


def test_a_parameter_without_state_begins_anew_and_is_named() -> None:
    """It may have been frozen when the state was saved; it may have been lost."""
    params = parameters()
    optimizer = SGDSaI(params)
    steps(optimizer, params, range(4))
    saved = optimizer.state_dict()
    del saved["state"][1]
    other = SGDSaI(parameters())
    with pytest.warns(UserWarning, match="lacks 1 of the trained parameters, which begin anew: parameter 1"):
        other.load_state_dict(saved)
    frozen = parameters()
    frozen[1].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SGDSaI(frozen).load_state_dict(saved)


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_a_momentum_that_has_not_begun_resumes_bit_for_bit(state_dtype: str | None) -> None:
    """With `measure_first` between measuring and moving, and where momentum was 0 until now."""

    def train(optimizer: SGDSaI, params: list[nn.Parameter], which: range) -> None:
        for step in which:
            give_gradients(params, step)
            optimizer.step()

    start = [nn.Parameter(torch.randn(70, 70)), nn.Parameter(torch.randn(5))]
    for options in ({"measure_first": True}, {"momentum": 0.0}):
        whole = [nn.Parameter(p.detach().clone()) for p in start]
        optimizer = SGDSaI(whole, lr=0.1, state_dtype=state_dtype, **options)
        train(optimizer, whole, range(1))
        optimizer.param_groups[0]["momentum"] = 0.9
        before = copy.deepcopy(dict(optimizer.state))
        saved = through_a_file(optimizer.state_dict())
        assert all(
            entries.keys() == before_.keys()
            for entries, before_ in zip(optimizer.state.values(), before.values(), strict=True)
        )
        assert all("momentum_buffer" in entries for entries in saved["state"].values())
        resumed = [nn.Parameter(p.detach().clone()) for p in whole]
        other = SGDSaI(resumed)
        other.load_state_dict(saved)
        train(optimizer, whole, range(1, 4))
        train(other, resumed, range(1, 4))
        assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


def test_numbers_of_numpy_are_saved_as_plain_ones() -> None:
    """A scheduler of one's own may well put them there."""
    params = parameters()
    optimizer = SGDSaI(params, lr=np.float64(0.1), weight_decay=np.float32(0.5))
    steps(optimizer, params, range(4))
    group = through_a_file(optimizer.state_dict())["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.5)
    assert group["maximize"] is False


def test_works_under_another_default_device() -> None:
    params = parameters()
    gradients = [torch.randn(p.shape) for p in params]
    optimizer = SGDSaI(params, weight_decay=0.1)
    torch.set_default_device("meta")
    try:
        for _ in range(2):
            for p, g in zip(params, gradients, strict=True):
                p.grad = g
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    finally:
        torch.set_default_device(None)
    assert all(s["momentum_buffer"].is_cpu for s in optimizer.state.values())


def test_a_full_state_dict_takes_every_option() -> None:
    """torch's gathering knows tensors, numbers and strings alone, and no dtype."""
    net = model()
    optimizer = SGDSaI(net.parameters(), lr=0.1, state_dtype=torch.bfloat16, scale=sqrt_d)
    learn(net, optimizer, range(2))
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = through_a_file(get_optimizer_state_dict(net, optimizer, options=whole))
    other = SGDSaI(net.parameters(), scale=sqrt_d)
    set_optimizer_state_dict(net, other, saved)
    assert other.param_groups[0]["state_dtype"] is torch.bfloat16
    assert all(s["momentum_buffer"].dtype == torch.bfloat16 for s in other.state.values())


@pytest.mark.parametrize("earlier", [False, True], ids=["", "as saved before"])
@pytest.mark.parametrize("normalize", [True, "rms"])
def test_resumes_after_a_late_larger_block_and_a_new_group(normalize: Any, earlier: bool) -> None:
    """The divisors are those of the first step, whatever latched, or was added, since; bit for bit."""

    def made() -> tuple[list[nn.Parameter], SGDSaI]:
        params = [nn.Parameter(torch.ones(size)) for size in (4, 1000, 9)]
        return params, SGDSaI(params[:2], lr=1e-3, normalize=normalize)

    def step(params: list[nn.Parameter], optimizer: SGDSaI, which: int, have: tuple[int, ...]) -> None:
        for index, param in enumerate(params):
            generator = torch.Generator().manual_seed(10 * which + index)
            param.grad = torch.randn(param.shape, generator=generator) if index in have else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            optimizer.step()

    params, optimizer = made()
    step(params, optimizer, 0, (0,))
    step(params, optimizer, 1, (0, 1))  # larger than the maximum, at which it is capped
    optimizer.add_param_group({"params": params[2:]})
    state = copy.deepcopy(optimizer.state_dict())
    if earlier:  # groups alone knew the divisors, and one that was added at its first latch only
        state["param_groups"][1].update(gsnr_max=UNLATCHED, gsnr_rms=UNLATCHED)
        for entries in state["state"].values():
            del entries["gsnr_max"], entries["gsnr_rms"]
    others, resumed = made()
    resumed.add_param_group({"params": others[2:]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the new group has no state
        resumed.load_state_dict(state)
    for key in ("gsnr_max", "gsnr_rms"):
        assert {group[key] for group in resumed.param_groups} == {optimizer.param_groups[0][key]}
    with torch.no_grad():
        for q, p in zip(others, params, strict=True):
            q.copy_(p)
    for which in (2, 3):
        step(params, optimizer, which, (0, 1, 2))
        step(others, resumed, which, (0, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    for key in ("gsnr_max", "gsnr_rms"):
        values = {group[key] for each in (optimizer, resumed) for group in each.param_groups}
        assert len(values) == 1
    assert optimizer.param_groups[0]["gsnr_max"] == optimizer.state[params[0]]["gsnr"] < 5


class Rule:
    """A scale rule that cannot be copied, as one that holds a lock or a model."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, moments: Any) -> float:
        self.calls += 1
        return sqrt_d(moments)

    def __deepcopy__(self, memo: object) -> Rule:
        raise AssertionError("copied")


def test_the_users_own_rule_is_not_copied_by_loading() -> None:
    params, rule = parameters(), Rule()
    optimizer = SGDSaI(params, lr=0.1, scale=rule)
    steps(optimizer, params, range(3))
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["scale"] is rule
    before = rule.calls
    steps(optimizer, params, range(3, 4))  # in which the last block latches
    assert rule.calls > before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 5.0}, "state_dict: momentum: given 5.0"),
        ({"lr": -1.0}, "state_dict: lr: given -1.0"),
        ({"state_dtype": "9bit"}, "state_dict: state_dtype: given '9bit'"),
        ({"split": 2, "blocks": "group"}, "state_dict: split: given 2 with blocks='group'"),
    ],
    ids=str,
)
def test_options_that_the_constructor_refuses(options: dict[str, Any], message: str) -> None:
    params = parameters()
    optimizer = SGDSaI(params, lr=0.1)
    steps(optimizer, params, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0].update(options)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
