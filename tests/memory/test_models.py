"""Built-in models, configurations and factories, built without allocating anything."""

from __future__ import annotations

import json

import pytest
from real import cnn, gpt, vit

from sgd_sai.memory import MODELS, load, plan

PUBLISHED = {  # numbers of parameters of the published checkpoints
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_514_298,
    "vit-s16": 22_050_664,
    "vit-b16": 86_567_656,
    "vit-l16": 304_326_632,
    "vit-h14": 632_045_800,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", MODELS)
def test_built_in_models_are_the_published_ones(name):
    model = load(name)
    assert sum(param.numel() for param in model.parameters()) == PUBLISHED[name]
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_a_config_is_the_model_that_it_describes(tmp_path):
    for model in (cnn(), vit(), gpt()):
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(tmp_path)
        assert plan(load(str(tmp_path))) == plan(load(str(tmp_path / "config.json"))) == plan(model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert plan(load(str(tmp_path)), dtype="fp32") == plan(gpt())


def test_a_factory_that_gives_batches_too(tmp_path, monkeypatch):
    """One factory serves `sgd-sai gsnr`, `lr-find` and `memory`."""
    (tmp_path / "with_batches.py").write_text(
        "import torch\n\ndef factory():\n    return torch.nn.Linear(3, 2), [torch.ones(1, 3)]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert sum(param.numel() for param in load("with_batches:factory").parameters()) == 8
