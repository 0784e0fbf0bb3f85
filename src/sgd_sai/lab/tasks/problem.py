"""A task: a model, batches that depend on (seed, step) alone, and a held-out measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sgd_sai.lab.schedules import Schedule

#: The model's inputs and, last, the targets: the class of each position, of shape () or (length,) per sample.
Batch = tuple[Tensor, ...]

IGNORED = -100  # a target that does not count


@dataclass(frozen=True)
class Problem:
    """A task with its data loaded.

    Attributes:
        model: makes the model; its initial weights come from torch's global generator.
        batch: (seed, step) → the batch of that step, a pure function, so that a run resumes exactly.
        validation: the held-out batches, the same for every run.
        data: what the data is, for the record.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[int, int], Batch]
    validation: Sequence[Batch]
    data: str

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy of the batch in nats, a 0-dim tensor."""
        *inputs, classes = on_device_of(model, batch)
        # Targets of one dimension more are probabilities: of mixed images.
        logits = model(*inputs).logits
        flat = classes if classes.is_floating_point() else classes.flatten()
        return F.cross_entropy(logits.flatten(0, -2), flat, ignore_index=IGNORED)

    def judged(self, batch: Batch) -> int:
        """Return the number of terms of which the loss of the batch is the mean."""
        *_, classes = batch
        return len(classes) if classes.is_floating_point() else int((classes != IGNORED).sum())

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """{"val_loss": nats a class, "val_accuracy": fraction} on all held-out batches."""
        model.eval()
        loss = right = count = 0.0
        for batch in self.validation:
            *inputs, classes = on_device_of(model, batch)
            logits, flat = model(*inputs).logits.flatten(0, -2), classes.flatten()
            loss += F.cross_entropy(logits, flat, reduction="sum", ignore_index=IGNORED).item()
            right += (logits.argmax(-1) == flat).sum().item()
            count += (flat != IGNORED).sum().item()
        model.train()
        return {"val_loss": loss / count, "val_accuracy": right / count}

    def samples(self, model: nn.Module) -> bytes | str | None:
        """Return pictures that the model makes, as a PNG, or a text, or None."""
        return None


@dataclass(frozen=True)
class Task:
    """One row of the study: a task at one scale.

    Attributes:
        name, title: for the command line and for the report.
        about: model and data in one line.
        metric: what it is judged by: "val_loss" (lower is better) or "val_accuracy" (higher).
        unit: of the validation loss.
        steps: of a run, if nothing else is asked for.
        shrink: κ, the fraction by which a step at the peak learning rate shrinks a decayed weight.
        clip: largest global gradient norm, or None.
        load: data path, or None for the data that comes with the task → the problem. Raises ValueError,
            one line, for a path that it cannot use.
        schedule: what multiplies the learning rate.
        accumulate: into how many parts a batch is cut, whose gradients are averaged, to fit into memory.
        bf16: whether the model computes in bfloat16, by autocast.
        workers: processes that prepare batches ahead.
    """

    name: str
    title: str
    about: str
    metric: Literal["val_loss", "val_accuracy"]
    unit: str
    steps: int
    shrink: float
    clip: float | None
    load: Callable[[Path | None], Problem]
    schedule: Schedule = field(default_factory=Schedule)
    accumulate: int = 1
    bf16: bool = False
    workers: int = 0


def on_device_of(model: nn.Module, batch: Batch) -> Batch:
    """The batch where the model is."""
    device = next(model.parameters()).device
    return tuple(part.to(device, non_blocking=True) for part in batch)


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on (seed, *key) alone."""
    return np.random.default_rng((seed, *key))


def initial_std(width: int) -> float:
    """Deviation of the initial weights: GPT-2's and ViT's 0.02 at their width 768, constant times 1/√width.

    A narrow transformer with 0.02 starts with signals so small that every optimizer loses its first steps.
    """
    return 0.02 * math.sqrt(768 / width)


def epoch_indices(samples: int, size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Which samples are in the batch of a step: each epoch is its own permutation, its rest is dropped."""
    per_epoch = samples // size
    epoch, place = divmod(step, per_epoch)
    return generator(seed, epoch).permutation(samples)[place * size : (place + 1) * size]


def batches(size: int, *parts: Tensor) -> Iterator[Batch]:
    """Inputs and targets cut into consecutive batches."""
    yield from zip(*(torch.split(part, size) for part in parts), strict=True)


def needs(package: str, task: str) -> ValueError:
    """The error, one line, for a package that is not installed."""
    return ValueError(f"{task} needs the package {package!r}: pip install 'sgd-sai[study]'")
