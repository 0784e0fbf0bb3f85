"""G_snr/√d of every kind of block at the first gradient of a GPT-2 and of a ViT, at the paper's sizes.

    python benchmarks/gsnr_is_sqrt_d.py --out benchmarks/results/gsnr_is_sqrt_d.json

The GPT-2 (12 layers, 768 wide) reads the English of Python's own documentation, byte by byte: 256 tokens
instead of 50 257. The ViT (S/16: 12 layers, 384 wide) sees crops of the two photographs that come with
scikit-learn. It writes the record, and prints the table of docs/gsnr.md, which is drawn from it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from sgd_sai.diagnostics import BlockMeasurement, measure_blocks
from sgd_sai.files import write_json
from sgd_sai.gsnr import Moments, combined, g_snr
from sgd_sai.lab import provenance

#: Kinds of blocks, by the first of these parts that occurs in a parameter's name.
KINDS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "c_attn": "query, key and value in one",
    "attn.c_proj": "attention output",
    "o_proj": "attention output",
    "mlp.c_fc": "MLP, first",
    "mlp.fc1": "MLP, first",
    "mlp.c_proj": "MLP, second",
    "mlp.fc2": "MLP, second",
    "ln_": "norm",
    "layernorm": "norm",
    "wte": "token embedding, tied to the head",
    "wpe": "position embedding",
    "position_embeddings": "position embedding",
    "patch_embeddings": "patch embedding",
    "cls_token": "class token",
    "classifier": "head",
}


def gpt2() -> nn.Module:
    """GPT-2 small for bytes, after backward of 4 texts of 128 bytes."""
    config = transformers.GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, use_cache=False)
    model = transformers.GPT2LMHeadModel(config)
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    starts = torch.randint(len(text) - 128, (4, 1))
    tokens = text[starts + torch.arange(128)]
    model(input_ids=tokens, labels=tokens).loss.backward()
    return model


def vit() -> nn.Module:
    """ViT-S/16 with 1000 classes, after backward of 8 crops of 224 × 224."""
    config = transformers.ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    model = transformers.ViTForImageClassification(config)
    pictures = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    labels = torch.randint(len(pictures), (8,))
    crops = torch.stack([crop(pictures[label]) for label in labels])
    model(pixel_values=crops, labels=labels).loss.backward()
    return model


def crop(picture: Tensor) -> Tensor:
    """A random part of a picture, (height, width, 3) in 0 … 255, as (3, 224, 224) in [−1, 1]."""
    top, left = (int(torch.randint(size - 224, ())) for size in picture.shape[:2])
    return picture[top : top + 224, left : left + 224].permute(2, 0, 1).float().div(127.5).sub(1)


def kind(name: str) -> str:
    """The kind of a block, by its parameter's name."""
    of = next(kind for part, kind in KINDS.items() if part in name)
    return f"{of}, bias" if name.endswith("bias") else of


def ratio(moments: Moments) -> float:
    """G_snr/√d."""
    return g_snr(moments) / math.sqrt(moments.n)


def identity(moments: Moments) -> float:
    """√(1 + ḡ²/G_var), what G_snr/√d is with ε = 0."""
    return math.sqrt(1 + moments.mean**2 / moments.variance())


def fused(blocks: list[BlockMeasurement]) -> Iterator[Moments]:
    """Query, key and value of each layer as one block, as timm's ViT has them and the paper plots them."""
    parts = [block for block in blocks if kind(block.name) in ("query", "key", "value")]
    for start in range(0, len(parts), 3):
        yield combined([block.moments for block in parts[start : start + 3]])


def summary(model: nn.Module) -> list[dict[str, Any]]:
    """A row for each kind of block: how many there are, d, and G_snr/√d."""
    blocks = measure_blocks(model).latched
    by_kind: dict[str, list[Moments]] = {}
    for block in blocks:
        by_kind.setdefault(kind(block.name), []).append(block.moments)
    if "query" in by_kind:
        by_kind["query, key and value in one"] = list(fused(blocks))
    return [
        {
            "kind": name,
            "blocks": len(members),
            "d": members[0].n,
            "smallest": min(map(ratio, members)),
            "median": statistics.median(map(ratio, members)),
            "largest": max(map(ratio, members)),
            "identity_error": max(
                abs(g_snr(moments, eps=0.0) / math.sqrt(moments.n) / identity(moments) - 1)
                for moments in members
            ),
        }
        for name, members in sorted(by_kind.items(), key=lambda item: -item[1][0].n)
    ]


def table(record: dict[str, Any]) -> str:
    """The record as the Markdown table of docs/gsnr.md."""
    lines = ["| | blocks | d | √d | G_snr/√d: median | smallest | largest |", "|---|---|---|---|---|---|---|"]
    for model, rows in record["models"].items():
        lines.append(f"| **{model}** | | | | | | |")
        for row in rows:
            median, smallest, largest = (f"{row[key]:.4f}" for key in ("median", "smallest", "largest"))
            d = f"{row['d']:,}".replace(",", " ")
            lines.append(
                f"| {row['kind']} | {row['blocks']} | {d} | {math.sqrt(row['d']):.1f} | {median} "
                f"| {smallest} | {largest} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure both models and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gsnr_is_sqrt_d.json"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    models = {}
    for name, build in (("GPT-2 small", gpt2), ("ViT-S/16", vit)):
        torch.manual_seed(args.seed)
        models[name] = summary(build())
    record = {"models": models, "seed": args.seed, **provenance.record()}
    write_json(args.out, record)
    print(table(record))


if __name__ == "__main__":
    main()
