"""The tables of docs/distributed-costs.md, which are arithmetic; run as a script, this prints them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sgd_sai.distributed.collectives import BITS, CAPACITY
from sgd_sai.memory import load, plan

ROOT = Path(__file__).parents[2]
GPUS = (8, 64, 256, 1024)
MODELS = ("llama2-7b", "llama2-70b", "llama3.1-405b")
GB = 1e9


@cache
def model(name: str) -> Any:
    """On the meta device: shapes alone."""
    if name != "llama3.1-405b":
        return load(name)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126,
        num_attention_heads=128, num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def numbers(name: str) -> tuple[int, int]:
    """N parameters in K blocks."""
    sizes = [p.numel() for p in model(name).parameters()]
    return sum(sizes), len(sizes)


def state(name: str) -> Iterator[str]:
    """Bytes on the rank that holds most, FSDP2."""
    for optimizer in ("sgd-sai", "adamw"):
        sizes = [plan(model(name), optimizer, world_size=g, shard="fsdp").state / GB for g in GPUS]
        yield f"| {name} | {optimizer} | " + " | ".join(f"{size:.2f}" for size in sizes) + " |"


def traffic(name: str) -> Iterator[str]:
    n, _ = numbers(name)
    for optimizer, each in (("sgd-sai", 20), ("adamw", 28)):
        yield f"| {name} | {optimizer} | " + " | ".join(f"{each * n / g / GB:.2f}" for g in GPUS) + " |"


def latch(name: str) -> Iterator[str]:
    n, k = numbers(name)
    for g in GPUS:
        once = 2 * (g - 1) / g * 8 * (BITS + 4 * CAPACITY)
        step = (g - 1) / g * (2 * 2 * n + 4 * n)
        yield f"| {name} | {k} | {g} | {once / 1e3:.1f} kB | {step / GB:.2f} GB | {once / step:.0e} |"


@pytest.mark.parametrize("table", [state, traffic, latch], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_the_page_has_these_rows(name: str, table: Any) -> None:
    pytest.importorskip("transformers")
    page = (ROOT / "docs" / "distributed-costs.md").read_text("utf-8").splitlines()
    for row in table(name):
        assert row in page


if __name__ == "__main__":
    for table in (state, traffic, latch):
        for name in MODELS:
            print(*table(name), sep="\n")
