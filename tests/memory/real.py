"""Small real models, the optimizers whose bytes are planned, and what their states hold."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from sgd_sai import SGDSaI

transformers = pytest.importorskip("transformers")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cnn() -> nn.Module:
    shape = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**shape, num_labels=10))


def vit() -> nn.Module:
    shape = {"hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 100}
    config = transformers.ViTConfig(**shape, image_size=16, patch_size=4, num_labels=10)
    return transformers.ViTForImageClassification(config)


def gpt(tied: bool = True, vocabulary: int = 101) -> nn.Module:
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": vocabulary}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": tied}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **tokens))


KINDS = {"cnn": cnn, "vit": vit, "gpt": gpt}


def randomise(model: nn.Module) -> None:
    """No tensor all zeros, and a random gradient for all that train."""
    for param in model.parameters():
        nn.init.normal_(param.data)
        if param.requires_grad:
            param.grad = torch.randn_like(param)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def muon_and_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    hidden = [p for p in trained(model) if p.dim() == 2 and not any(p is e for e in embeddings)]
    rest = [p for p in trained(model) if not any(p is h for h in hidden)]
    return [torch.optim.Muon(hidden), torch.optim.AdamW(rest)] if hidden else [torch.optim.AdamW(rest)]


def adam_mini(model: nn.Module) -> torch.optim.Optimizer:
    names = [
        # It takes no tensor but a matrix by these names.
        (f"tensor.{i}" if "embed" in name and param.dim() != 2 and "bias" not in name else name, param)
        for i, (name, param) in enumerate(model.named_parameters())
    ]
    heads = {}
    if hasattr(model.config, "num_attention_heads"):
        heads = {"dim": model.config.hidden_size, "n_heads": model.config.num_attention_heads}
    return peer("adam_mini").Adam_mini(names, verbose=False, **heads)


def peer(name: str):
    pytest.importorskip(name)
    return importlib.import_module(name)


REAL = {
    "adamw": lambda model: torch.optim.AdamW(trained(model)),
    "adam": lambda model: torch.optim.Adam(trained(model)),
    "sgd-no-momentum": lambda model: torch.optim.SGD(trained(model)),
    "sgd": lambda model: torch.optim.SGD(trained(model), momentum=0.9),
    "adafactor": lambda model: torch.optim.Adafactor(trained(model)),
    "muon": muon_and_adamw,
    "adam-mini": adam_mini,
    "prodigy": lambda model: peer("prodigyopt").Prodigy(trained(model)),
    "adamw-8bit": lambda model: peer("bitsandbytes").optim.AdamW8bit(trained(model)),
    "sgd-sai": lambda model: SGDSaI(trained(model)),
    "sgd-sai-bf16": lambda model: SGDSaI(trained(model), state_dtype=torch.bfloat16),
    "sgd-sai-8bit": lambda model: SGDSaI(trained(model), state_dtype="8bit"),
    "sgd-sai-no-momentum": lambda model: SGDSaI(trained(model), momentum=0.0),
}


def state_bytes(optimizers: object) -> int:
    """numel · element size of every tensor in the state; one that several parameters share once."""
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    tensors = {
        id(value): value
        for optimizer in optimizers
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, torch.Tensor)
    }
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def after_two_steps(model: nn.Module, name: str):
    optimizers = REAL[name](model)
    for _ in range(2):
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.step()
    return optimizers
