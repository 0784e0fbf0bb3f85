"""From a word to a model on the meta device: a built-in name, a config.json, or a user's factory."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgd_sai.factory import import_factory, one_line
from sgd_sai.files import content
from sgd_sai.peers.imports import muted


def _gpt2(width: int, layers: int, heads: int) -> tuple[str, dict[str, int]]:
    return "GPT2LMHeadModel", {"n_embd": width, "n_layer": layers, "n_head": heads}


def _vit(width: int, layers: int, heads: int, patch: int) -> tuple[str, dict[str, int]]:
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    rest = {"intermediate_size": 4 * width, "patch_size": patch, "num_labels": 1000}
    return "ViTForImageClassification", {**shape, **rest}


def _llama(width: int, inner: int, layers: int, heads: int, **more: int) -> tuple[str, dict[str, int]]:
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return "LlamaForCausalLM", {**shape, "num_attention_heads": heads, **more}


#: Built-in names: the class in transformers and what its configuration is given. All on ImageNet-1k or,
#: for language models, with the vocabulary that they were published with.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "bert-base": ("BertForMaskedLM", {}),
    "vit-s16": _vit(384, 12, 6, 16),
    "vit-b16": _vit(768, 12, 12, 16),
    "vit-l16": _vit(1024, 24, 16, 16),
    "vit-h14": _vit(1280, 32, 16, 14),
    "resnet18": (
        "ResNetForImageClassification",
        {
            "depths": [2, 2, 2, 2],
            "hidden_sizes": [64, 128, 256, 512],
            "layer_type": "basic",
            "num_labels": 1000,
        },
    ),
    "resnet50": ("ResNetForImageClassification", {"num_labels": 1000}),
    "llama2-7b": _llama(4096, 11008, 32, 32),
    "llama2-13b": _llama(5120, 13824, 40, 40),
    "llama2-70b": _llama(8192, 28672, 80, 64, num_key_value_heads=8),
    "llama3-8b": _llama(4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=128256),
    "llama3-70b": _llama(8192, 28672, 80, 64, num_key_value_heads=8, vocab_size=128256),
}


def load(model: str) -> nn.Module:
    """Build `model` on the meta device: nothing is downloaded, nothing is allocated.

    Args:
        model: a name of `MODELS`; the path of a transformers config.json, or of the folder that holds it;
            or "module:factory", a callable without arguments that returns an nn.Module, or a tuple that
            begins with one, looked for in the current folder too. A factory that puts tensors on a device by
            name does allocate them.

    Raises:
        ValueError: one line that says what is wrong with it.
    """
    path = Path(model)
    with muted():
        if model in MODELS:
            return _built_in(*MODELS[model])
        if path.suffix == ".json" or path.exists():
            return _from_config(path / "config.json" if path.is_dir() else path)
        if ":" in model:
            return _on_meta(import_factory(model), model)
    raise ValueError(
        f"model: given {model!r}; allowed: {', '.join(MODELS)}, the path of a config.json, or module:factory"
    )


def _built_in(class_name: str, settings: dict[str, Any]) -> nn.Module:
    model_class = getattr(_transformers(), class_name)
    return _on_meta(lambda: model_class(model_class.config_class(**settings)), class_name)


def _from_config(path: Path) -> nn.Module:
    transformers = _transformers()
    try:
        held = content(path)
        if held is None:
            raise OSError("No such file or directory")
        settings = json.loads(held.decode())
    except OSError as error:
        raise ValueError(f"model: cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model: {path} is not JSON ({error})") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise ValueError(f"model: {path} has no 'model_type'; needed: a config.json of transformers")
    kind = settings.pop("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise ValueError(f"model: {path} has the model_type {kind!r}, which transformers does not know")

    def build() -> Any:
        config = transformers.AutoConfig.for_model(kind, **settings)
        for name in settings.get("architectures") or []:
            model_class = getattr(transformers, str(name), None)
            if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
                return model_class(config)
        # Not said, or code that lies elsewhere, which is never run.
        language = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        auto = transformers.AutoModelForCausalLM if language else transformers.AutoModel
        return auto.from_config(config, dtype=torch.float32)

    return _on_meta(build, str(path))


def _on_meta(build: Callable[[], Any], name: str) -> nn.Module:
    try:
        with torch.device("meta"):
            built = build()
    except Exception as error:
        raise ValueError(f"model: {name} cannot be built on the meta device: {one_line(error)}") from None
    if isinstance(built, tuple) and built:
        built = built[0]  # a factory for `sgd-sai gsnr`, which gives batches too
    if not isinstance(built, nn.Module):
        raise ValueError(f"model: {name} gives a {type(built).__name__}; allowed: an nn.Module")
    return built


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise ValueError("model: needs the package 'transformers': pip install 'sgd-sai[lab]'") from None
