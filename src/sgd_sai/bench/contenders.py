"""Who is timed: every optimizer is one entry, made from parameters that have gradients."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgd_sai import SGDSaI

LR = 1e-8  # a step costs the same whatever lr is; parameters shall stay what they are over many steps
DECAY = 0.1

#: Where `make` puts the authors' release, whose import package is called like ours.
PEERS = Path(".peers")


class NotHere(Exception):
    """Why a contender cannot be timed on this machine."""


@dataclass(frozen=True)
class Contender:
    """An optimizer under the options that people use."""

    name: str
    label: str
    make: Callable[[list[Tensor]], Callable[[], object]]
    by_default: bool = True


def _ours(**options: Any) -> Callable[[list[Tensor]], Callable[[], object]]:
    return lambda params: SGDSaI(params, lr=LR, weight_decay=DECAY, **options).step


def _torch(name: str, **options: Any) -> Callable[[list[Tensor]], Callable[[], object]]:
    return lambda params: getattr(torch.optim, name)(params, lr=LR, **options).step


def _muon(params: list[Tensor]) -> Callable[[], object]:
    matrices = [p for p in params if p.dim() == 2 and p.numel() < 2**25]  # not the embedding
    return torch.optim.Muon(matrices, lr=LR).step


def _package(module: str, attribute: str, **options: Any) -> Callable[[list[Tensor]], Callable[[], object]]:
    def make(params: list[Tensor]) -> Callable[[], object]:
        try:
            optimizer = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise NotHere(f"not installed ({error.name or module})") from None
        step: Callable[[], object] = optimizer(params, lr=LR, **options).step
        return step

    return make


def _adam_mini(params: list[Tensor]) -> Callable[[], object]:
    named: Any = [(f"layer.{i}.weight", param) for i, param in enumerate(params)]
    return _package("adam_mini", "Adam_mini", weight_decay=DECAY, verbose=False)(named)


def _release(params: list[Tensor]) -> Callable[[], object]:
    source = PEERS / "sgd_sai" / "__init__.py"
    if not source.is_file():
        raise NotHere(f"not installed in {PEERS}/ (pip install --no-deps --target {PEERS} sgd-sai==1.0.3)")
    spec = importlib.util.spec_from_file_location(
        "sgd_sai_release", source, submodule_search_locations=[str(source.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    step: Callable[[], object] = module.SGD_sai(params, lr=LR, weight_decay=DECAY).step
    return step


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("sgd-sai", "SGD-SaI", _ours()),
        Contender("sgd-sai-no-decay", "SGD-SaI, no weight decay", lambda p: SGDSaI(p, lr=LR).step),
        Contender("sgd-sai-bf16", "SGD-SaI, momentum bf16", _ours(state_dtype=torch.bfloat16)),
        Contender("sgd-sai-8bit", "SGD-SaI, momentum 8 bit", _ours(state_dtype="8bit")),
        Contender("sgd-sai-no-momentum", "SGD-SaI, momentum 0", _ours(momentum=0.0)),
        Contender("sgd-sai-foreach", "SGD-SaI, foreach", _ours(foreach=True), False),
        Contender("sgd-sai-loop", "SGD-SaI, the for-loop", _ours(foreach=False, fused=False), False),
        Contender("sgd-fused", "torch SGD (fused, no decay)", _torch("SGD", momentum=0.9, fused=True)),
        Contender("sgd-foreach", "torch SGD (foreach)", _torch("SGD", momentum=0.9, foreach=True)),
        Contender("adamw-fused", "torch AdamW (fused)", _torch("AdamW", weight_decay=DECAY, fused=True)),
        Contender(
            "adamw-foreach", "torch AdamW (foreach)", _torch("AdamW", weight_decay=DECAY, foreach=True)
        ),
        Contender("muon", "torch Muon (matrices alone)", _muon, False),
        Contender("release", "sgd-sai 1.0.3", _release),
        Contender("pytorch-optimizer", "pytorch_optimizer SGDSaI", _package("pytorch_optimizer", "SGDSaI")),
        Contender("adam-mini", "Adam-mini", _adam_mini),
        Contender("prodigy", "Prodigy", _package("prodigyopt", "Prodigy")),
        Contender("optimi", "optimi SGD", _package("optimi", "SGD", momentum=0.9, weight_decay=DECAY)),
        Contender("adamw-8bit", "bitsandbytes AdamW8bit", _package("bitsandbytes.optim", "AdamW8bit")),
        Contender("torchao-8bit", "torchao AdamW8bit", _package("torchao.optim", "AdamW8bit"), False),
    )
}
