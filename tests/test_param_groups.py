"""Parameter groups: what is decayed, settings by name, layer-wise decay; straight into any optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sgd_sai import SGDSaI, param_groups


@pytest.fixture(scope="module")
def gpt() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=3, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def by_name(groups: list[dict[str, Any]], option: str) -> dict[str, Any]:
    return {name: group.get(option) for group in groups for name, _ in group["params"]}


def test_only_matrices_are_decayed(gpt: nn.Module) -> None:
    decays = by_name(param_groups(gpt, weight_decay=0.1), "weight_decay")
    assert decays == {name: 0.1 if p.dim() >= 2 else 0.0 for name, p in gpt.named_parameters()}
    assert decays["transformer.ln_f.weight"] == decays["transformer.h.0.attn.c_attn.bias"] == 0.0
    assert decays["transformer.wte.weight"] == 0.1  # tied to the head: there once


def test_norms_and_biases_of_any_shape_are_not_decayed() -> None:
    net = nn.ModuleDict({"norm": nn.LayerNorm((3, 4)), "linear": nn.Linear(4, 4)})
    net.register_parameter("bias", nn.Parameter(torch.zeros(2, 2)))
    decayed = by_name(param_groups(net, weight_decay=0.1), "weight_decay")
    assert [name for name, decay in decayed.items() if decay] == ["linear.weight"]


def test_settings_by_pattern_the_later_one_wins(gpt: nn.Module) -> None:
    groups = param_groups(
        gpt,
        weight_decay=0.1,
        settings={"*.bias": {"lr": 2.0}, "transformer.h.0.*": {"lr": 3.0, "weight_decay": 0.5}},
    )
    lr, decay = by_name(groups, "lr"), by_name(groups, "weight_decay")
    assert lr["transformer.ln_f.bias"] == 2.0
    assert lr["transformer.h.0.ln_1.bias"] == 3.0
    assert decay["transformer.h.0.ln_1.bias"] == 0.5
    assert lr["transformer.wte.weight"] is None
    assert len(groups) == len({tuple(sorted((k, g[k]) for k in g if k != "params")) for g in groups})


def test_layer_wise_decay(gpt: nn.Module) -> None:
    lr = by_name(param_groups(gpt, lr=1.0, layer_decay=0.5, layers="transformer.h.*"), "lr")
    assert lr["transformer.wte.weight"] == lr["transformer.wpe.weight"] == 0.5**4
    assert [lr[f"transformer.h.{layer}.mlp.c_fc.weight"] for layer in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert lr["transformer.ln_f.weight"] == 1.0


@pytest.mark.parametrize("optimizer", [SGDSaI, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_goes_into_any_optimizer_and_its_state_back(optimizer: Any, gpt: nn.Module) -> None:
    def build() -> torch.optim.Optimizer:
        return optimizer(param_groups(gpt.named_parameters(), weight_decay=0.1), lr=0.01)

    first = build()
    gpt(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    first.step()
    assert first.param_groups[0]["param_names"][0] == "transformer.wte.weight"
    build().load_state_dict(first.state_dict())


def test_frozen_parameters_are_left_out() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    assert list(by_name(param_groups(net), "lr")) == ["1.weight", "1.bias"]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"settings": {"head.*": {"lr": 1.0}}}, r"settings: 'head.\*' matches no parameter; there are 0.weight"),
    ({"lr": 1.0, "layer_decay": 0.5, "layers": "h.*"}, r"layers: 'h.\*' matches no start of a name"),
    ({"lr": 1.0}, "lr: given without layer_decay"),
    ({"settings": {"*": 3}}, r"settings: given 3 for '\*'; allowed: a mapping"),
    ({"layer_decay": 0.5, "layers": "*"}, "lr: needed with layer_decay"),
    ({"lr": 1.0, "layer_decay": 0.5}, "layer_decay, layers: given one without the other"),
    ({"lr": 1.0, "layer_decay": 1.5, "layers": "*"}, "layer_decay: given 1.5; allowed"),
])  # fmt: skip
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        param_groups(nn.Sequential(nn.Linear(2, 2)), **arguments)


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="model: it has no parameter that requires a gradient"):
        param_groups([])
