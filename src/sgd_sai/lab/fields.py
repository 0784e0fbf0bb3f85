"""The parts of the lab's files, as schemas for `sgd_sai.lab.schema`."""

from __future__ import annotations

from typing import Literal, TypedDict

from sgd_sai.lab.schema import Count, NotNegative, Positive

Metric = Literal["val_loss", "val_accuracy"]


class _TaskAsAlways(TypedDict):
    title: str
    about: str
    metric: Metric
    unit: str
    data: str
    clip: float | None
    shrink: float


class TaskAsRun(_TaskAsAlways, total=False):
    """A task as it was when it was run; the first records have no schedule."""

    schedule: str


class _AnyMachine(TypedDict):
    processor: str
    cores: int | None
    memory_gib: float
    system: str


class Machine(_AnyMachine, total=False):
    """Where a record was made."""

    gpu: str


class HeldOut(TypedDict, total=False):
    """What an evaluation found: of pictures that are made no accuracy."""

    val_loss: float
    val_accuracy: float


class Result(HeldOut, total=False):
    """How a run ended."""

    steps: Count
    seconds: NotNegative
    state_bytes: Count
    diverged_at: Count


class _Rate(TypedDict):
    lr: Positive


class Point(_Rate, HeldOut):
    """A trial of a tuning; no metric if it diverged."""


class Tuning(TypedDict):
    """Where a learning rate comes from."""

    lr: Positive
    grid: list[Positive]
    points: list[Point]
    seed: Count
    steps: Count


class _Line(TypedDict):
    step: Count
    seconds: NotNegative


class TrainingLine(_Line):
    """A line of training in `metrics.jsonl`; see `sgd_sai.lab.records`."""

    train_loss: float
    lr: float
    step_ms: NotNegative


class _Loss(_Line):
    val_loss: float


class EvaluationLine(_Loss, total=False):
    """A line of evaluation there."""

    val_accuracy: float
