"""scikit-learn's handwritten digits, 1797 grey images of 8 × 8, for any classifier of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sgd_sai.lab.tasks.problem import Batch, Problem, batches, epoch_indices

BATCH = 64
HELD_OUT = 450  # images, the same share of each digit
SPLIT_SEED = 0


def load(model: Callable[[], nn.Module], path: Path | None) -> Problem:
    """Images as float32 (n, 1, 8, 8) in [−1, 1], digits as int64 (n,); a fixed, stratified split."""
    if path is not None:
        raise ValueError(
            f"--data: given {path}, for gpt alone; vit and cnn learn scikit-learn's digits: give --task gpt"
        )
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images, digits, test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=digits)
    train_images, held_images = (
        torch.from_numpy(part).float().div(8).sub(1).reshape(-1, 1, 8, 8) for part in split[:2]
    )
    train_digits, held_digits = (torch.from_numpy(part).long() for part in split[2:])

    def batch(seed: int, step: int) -> Batch:
        chosen = torch.from_numpy(epoch_indices(len(train_images), BATCH, seed, step))
        return train_images[chosen], train_digits[chosen]

    return Problem(
        model=model,
        batch=batch,
        validation=list(batches(held_images, held_digits, 256)),
        data=f"scikit-learn's digits: {len(train_images)} images to train on, {len(held_images)} held out",
    )
