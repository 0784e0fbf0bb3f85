"""A vision transformer on handwritten digits, on folders of pictures, or on ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.tasks import images
from sgd_sai.lab.tasks.images import Images
from sgd_sai.lab.tasks.problem import Batch, Problem, Task, epoch_indices, generator, initial_std

IMAGENET_SIZE, IMAGENET_BATCH = 224, 1024  # pixels; images, as in Beyer et al.
_JUDGED = 256  # images of a held-out batch


def model(
    size: int, channels: int, classes: int, patch: int, width: int, layers: int, heads: int
) -> nn.Module:
    """A plain ViT without dropout; the weights' deviation is 0.02 at width 768, else by 1/√width."""
    config = transformers.ViTConfig(
        image_size=size,
        patch_size=patch,
        num_channels=channels,
        hidden_size=width,
        initializer_range=initial_std(width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=classes,
    )
    network: nn.Module = transformers.ViTForImageClassification(config)
    return network


def _tiny(path: Path | None) -> Problem:
    def made(data: Images) -> nn.Module:
        _, channels, size, _ = data.train.shape
        return model(size, channels, data.classes, patch=size // 4, width=64, layers=4, heads=4)

    data = images.digits() if path is None else images.folder(path, size=32)
    return images.classification(made, data, batch_size=64)


def _small(path: Path | None) -> Problem:
    if path is None:
        raise ValueError("--data: this scale of vit needs a folder of pictures, one folder per class")

    def made(data: Images) -> nn.Module:
        return model(64, 3, data.classes, patch=8, width=384, layers=12, heads=6)

    return images.classification(made, images.folder(path, size=64), batch_size=256, augment=True)


@dataclass(frozen=True)
class _ImageNetBatches:
    """Batches of ImageNet, decoded when they are asked for."""

    files: list[tuple[Path, int]]
    classes: int

    def __call__(self, seed: int, step: int) -> Batch:
        """Inception crops, flips, RandAugment(2, 10) and mixup with p = 0.2, as in Beyer et al."""
        chosen = epoch_indices(len(self.files), IMAGENET_BATCH, seed, step)
        random = generator(seed, step, 1)
        inputs = images.unit(
            torch.stack([images.picture(self.files[index][0], IMAGENET_SIZE, random) for index in chosen])
        )
        classes = F.one_hot(torch.tensor([self.files[index][1] for index in chosen]), self.classes).float()
        share = float(generator(seed, step, 2).beta(0.2, 0.2))
        return (
            share * inputs + (1 - share) * inputs.roll(1, 0),
            share * classes + (1 - share) * classes.roll(1, 0),
        )


class _HeldOut(list[Batch]):
    """ImageNet's validation images, decoded batch by batch."""

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return -(-len(self.files) // _JUDGED)

    def __iter__(self) -> Any:
        for start in range(0, len(self.files), _JUDGED):
            part = self.files[start : start + _JUDGED]
            pictures: list[Tensor] = [images.picture(file, IMAGENET_SIZE) for file, _ in part]
            yield images.unit(torch.stack(pictures)), torch.tensor([index for _, index in part])


def _paper(path: Path | None) -> Problem:
    parts = {part: images.listing(Path(path or "") / part) for part in ("train", "val")}
    (names, train), (held_names, held) = parts["train"], parts["val"]
    if path is None or not train or names != held_names:
        raise ValueError(
            f"--data: given {path}; this scale of vit needs ImageNet: a folder with train/CLASS/PICTURE.JPEG "
            "and val/CLASS/PICTURE.JPEG, the same classes"
        )
    if len(train) < IMAGENET_BATCH:
        raise ValueError(
            f"--data: {path}/train holds {len(train)} pictures; needed: {IMAGENET_BATCH} or more"
        )
    images.check_pictures([file for file, _ in train + held])
    return Problem(
        model=lambda: model(IMAGENET_SIZE, 3, len(names), patch=16, width=384, layers=12, heads=6),
        batch=_ImageNetBatches(train, len(names)),
        validation=_HeldOut(held),
        data=f"{path}: {len(train)} images to train on, {len(held)} held out, {len(names)} classes",
    )


TINY = Task(
    name="vit",
    title="ViT on digits",
    about="Vision transformer, 4 layers of width 64, patches of 2 × 2, batch 64",
    metric="val_accuracy",
    unit="nats per image",
    steps=400,
    shrink=1e-4,
    clip=1.0,
    load=_tiny,
)
SMALL = Task(
    name="vit-small",
    title="ViT-S/8 on pictures of 64 × 64",
    about="Vision transformer, 12 layers of width 384, batch 256, random crops and flips, bf16",
    metric="val_accuracy",
    unit="nats per image",
    steps=3000,
    shrink=1e-4,
    clip=1.0,
    load=_small,
    bf16=True,
)
#: 90 epochs of 1 281 167 images. Beyer et al.: batch 1024, 10 000 steps of warm-up, cosine, clipping at 1,
#: and lr 1e-3 with weight decay 1e-4 not multiplied by lr. The paper's grid has λ of 1e-2 to 1e-4; κ is
#: that of lr 1e-3 with λ = 0.1, chosen. Positions are learned and the head reads a class token, as in the
#: original ViT, where Beyer et al. have fixed ones and a mean.
PAPER = Task(
    name="vit-paper",
    title="ViT-S/16 on ImageNet, 90 epochs",
    about="Vision transformer, 12 layers of width 384, batch 1024, RandAugment and mixup, bf16",
    metric="val_accuracy",
    unit="nats per image",
    steps=90 * 1251,
    shrink=1e-4,
    clip=1.0,
    load=_paper,
    schedule=Schedule(warm_up=10_000 / (90 * 1251)),
    accumulate=4,
    bf16=True,
    workers=8,  # each has two batches of 616 MB ready, 10 GB of shared memory in all
)
