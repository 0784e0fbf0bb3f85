"""The batches of a run, prepared ahead by other processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from sgd_sai.lab.tasks import Problem
from sgd_sai.lab.tasks.problem import Batch


def batches(problem: Problem, seed: int, steps: range, workers: int) -> Iterator[Batch]:
    """Yield the batches of the steps, prepared ahead by `workers` processes; by none if it is 0."""
    if not workers:
        return (problem.batch(seed, step) for step in steps)
    prepared = DataLoader(
        _Steps(problem, seed),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        generator=torch.Generator(),  # its own: it must not draw from the model's
        multiprocessing_context="fork",
    )
    return iter(prepared)


class _Steps(Dataset[Batch]):
    """Step → batch, as torch's loader wants it."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed

    def __getitem__(self, step: int) -> Batch:
        return self.problem.batch(self.seed, step)
