"""A small ResNet-18 on handwritten digits."""

from __future__ import annotations

from functools import partial

import transformers
from torch import nn

from sgd_sai.lab.tasks import digits
from sgd_sai.lab.tasks.problem import Task


def model() -> nn.Module:
    """ResNet-18's four stages of two basic layers, 16 to 128 wide, after a 3 × 3 stem that keeps 8 × 8."""
    config = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=10,
    )
    network: nn.Module = transformers.ResNetForImageClassification(config)
    # ResNet's own stem is made for 224 × 224: it would leave 2 × 2 of a digit.
    stem = network.get_submodule("resnet.embedder")
    stem.embedder = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    stem.pooler = nn.Identity()
    return network


TASK = Task(
    name="cnn",
    title="ResNet on digits",
    about="ResNet-18's layout, 16 to 128 wide, batch 64",
    metric="val_accuracy",
    unit="nats per image",
    steps=250,
    shrink=1e-4,
    clip=None,
    load=partial(digits.load, model),
)
