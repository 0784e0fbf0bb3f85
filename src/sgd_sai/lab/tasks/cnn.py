"""A ResNet-18 on handwritten digits, or on CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import transformers
from torch import nn

from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.tasks import images
from sgd_sai.lab.tasks.images import Images
from sgd_sai.lab.tasks.problem import Problem, Task


def model(data: Images, width: int) -> nn.Module:
    """ResNet-18's four stages of two basic layers, `width` to 8 × `width` wide, after a 3 × 3 stem.

    The stem, as is usual for CIFAR, keeps height and width; ResNet's own is made for 224 × 224.
    """
    config = transformers.ResNetConfig(
        num_channels=data.train.shape[1],
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=data.classes,
    )
    network: nn.Module = transformers.ResNetForImageClassification(config)
    stem = network.get_submodule("resnet.embedder")
    convolution = nn.Conv2d(data.train.shape[1], width, 3, padding=1, bias=False)
    stem.embedder = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
    stem.pooler = nn.Identity()
    return network


def _tiny(path: Path | None) -> Problem:
    data = images.digits() if path is None else images.parquet(path, "cnn")
    return images.classification(lambda data: model(data, 16), data, batch_size=64)


def _cifar(path: Path | None) -> Problem:
    if path is None:
        raise ValueError("--data: this scale of cnn needs CIFAR-10: a folder with its parquet files")
    return images.classification(
        lambda data: model(data, 64), images.parquet(path, "cnn"), batch_size=128, augment=True
    )


TINY = Task(
    name="cnn",
    title="ResNet on digits",
    about="ResNet-18's layout, 16 to 128 wide, batch 64",
    metric="val_accuracy",
    unit="nats per image",
    steps=250,
    shrink=1e-4,
    clip=None,
    load=_tiny,
)
SMALL = Task(
    name="cnn-small",
    title="ResNet-18 on images, 30 epochs",
    about="ResNet-18 with a stem for small images, batch 128, random crops and flips, bf16",
    metric="val_accuracy",
    unit="nats per image",
    steps=30 * 390,
    shrink=5e-5,
    clip=None,
    load=_cifar,
    bf16=True,
)
#: The paper searches λ too, as `sgd-sai sweep` does. Here κ = 5e-5: lr 0.1 × λ 5e-4, SGD's usual on CIFAR.
PAPER = Task(
    name="cnn-paper",
    title="ResNet-18 on CIFAR-10, 200 epochs",
    about="ResNet-18 with a stem for small images, batch 128, random crops and flips, fp32",
    metric="val_accuracy",
    unit="nats per image",
    steps=200 * 390,
    shrink=5e-5,
    clip=None,
    load=_cifar,
    schedule=Schedule(warm_up=0.0, drop_every=0.4),  # every 80 epochs of 200
)
