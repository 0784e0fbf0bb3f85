"""A small vision transformer on handwritten digits."""

from __future__ import annotations

from functools import partial

import transformers
from torch import nn

from sgd_sai.lab.tasks import digits
from sgd_sai.lab.tasks.problem import Task, initial_std

WIDTH = 64


def model() -> nn.Module:
    """4 layers, 64 wide, 4 heads, patches of 2 × 2, no dropout."""
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=WIDTH,
        initializer_range=initial_std(WIDTH),
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=10,
    )
    network: nn.Module = transformers.ViTForImageClassification(config)
    return network


TASK = Task(
    name="vit",
    title="ViT on digits",
    about="Vision transformer, 4 layers of width 64, patches of 2 × 2, batch 64",
    metric="val_accuracy",
    unit="nats per image",
    steps=400,
    shrink=1e-4,
    clip=1.0,
    load=partial(digits.load, model),
)
