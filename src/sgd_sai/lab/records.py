"""The files of a run: `run.json`, and `metrics.jsonl` with one line per logged step.

A line of training is {"step", "seconds", "train_loss", "lr", "step_ms"}, means over the steps since the last
line (lr: of the last step; step_ms: median milliseconds of optimizer.step). A line of evaluation is {"step",
"seconds", "val_loss"} and, of classes, "val_accuracy". Seconds are of training alone, without evaluation and
checkpoints. `gsnr.json` holds the G_snr of every block at the first step and at those of the evaluations;
`samples.png` or `samples.txt` what the model makes at the end, where it makes something.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from sgd_sai.files import content, write_aside, write_json
from sgd_sai.lab.faults import damage_named
from sgd_sai.lab.fields import EvaluationLine, Machine, Result, TaskAsRun, TrainingLine, Tuning
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.lab.schema import AtLeastOne, Count, NotNegative, Positive, check, parse

RUN, METRICS, CHECKPOINT, GSNR = "run.json", "metrics.jsonl", "checkpoint.pt", "gsnr.json"
PICTURES, TEXT = "samples.png", "samples.txt"
Status = Literal["running", "interrupted", "diverged", "finished"]
_LINES = "the metrics of a run"


def _json(path: Path) -> Any:
    if (found := content(path)) is None:
        raise OSError("it is missing")
    return parse(found.decode())


@dataclass(frozen=True)
class RunConfig:
    """All that determines a run on a given machine.

    Attributes:
        task, optimizer: names in the registries.
        seed: of the initial weights and of the order of the data.
        steps, lr: their number, and the peak learning rate.
        data: the data path, or None for the task's own.
        threads: of torch.
        weight_decay: λ of a sweep; None: what gives the task's κ.
        ranks: processes that share every batch.
        fsdp: whether they share the parameters too.
    """

    task: str
    optimizer: str
    seed: Count
    steps: AtLeastOne
    lr: Positive
    data: str | None
    threads: AtLeastOne
    weight_decay: NotNegative | None = None
    ranks: AtLeastOne = 1
    fsdp: bool = False

    def identity(self, data: str) -> dict[str, Any]:
        """Return what a run that goes on must have in common; `data` says what the data is, not where."""
        return {**asdict(self), "data": data}


def differences(held: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return in what an identity differs from the one that is asked for, "" if they are the same."""
    names = dict.fromkeys((*asked, *held))
    return ", ".join(
        f"{name} {held.get(name)}, not {asked.get(name)}"
        for name in names
        if held.get(name) != asked.get(name)
    )


@dataclass
class Record:
    """`run.json`.

    Attributes:
        config: what was run.
        status: "running", also of a run that was killed; "interrupted"; "diverged"; "finished".
        task: title, about, metric, unit, data, schedule, clip and shrink, as they were.
        parameters: how many the model has.
        tuning: where lr comes from: grid, points, seed and steps of its tuning; None for `--lr`.
        machine, versions, command, date: where, with what, how and when (start, UTC).
        result: steps, seconds, state_bytes, and val_loss, of classes val_accuracy, or, of a diverged run,
            diverged_at, a step; None until there is one.
    """

    config: RunConfig
    status: Status
    task: Annotated[dict[str, Any], TaskAsRun]
    parameters: Count
    tuning: Annotated[dict[str, Any], Tuning] | None
    machine: Annotated[dict[str, Any], Machine]
    versions: dict[str, str]
    command: str
    date: str
    result: Annotated[dict[str, Any], Result] | None = None

    def write(self, folder: Path) -> None:
        """Write `run.json` into `folder`."""
        write_json(folder / RUN, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read `run.json` of `folder`; `DamagedRun` if it is none."""
        with damage_named(folder / RUN, "the record of a run"):
            return cls.of(_json(folder / RUN))

    @classmethod
    def of(cls, fields: Any) -> Record:
        """Make one of its JSON; ValueError if fields are missing, unknown, or do not belong together."""
        record: Record = check(cls, fields)
        optimizer, result = record.config.optimizer, record.result or {}
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"config.optimizer is {optimizer!r}; allowed: {', '.join(OPTIMIZERS)}")
        if record.tuning is not None and not record.tuning["grid"]:
            raise ValueError("tuning.grid is empty")
        ends = {"diverged": {"diverged_at"}, "finished": {"val_loss", record.task["metric"]}}
        if record.status in ends or record.result is not None:
            needed = {"steps", "seconds", "state_bytes"} | ends.get(record.status, set())
            if missing := sorted(needed - result.keys()):
                raise ValueError(f"result lacks {missing[0]!r}, and the run has {record.status}")
        return record


@dataclass
class BlockGSNR:
    """`gsnr.json`.

    Attributes:
        d: block → how many elements it has, of all blocks that are trained.
        steps: step → the raw G_snr of each block of `d`, of the gradient which that step used; None where it
            was zero or not finite.
    """

    d: dict[str, AtLeastOne]
    steps: dict[Count, list[Positive | None]]

    @property
    def spans(self) -> list[float]:
        """Largest over smallest G_snr of each block that was measured more than once."""
        seen = [
            [value for value in block if value is not None]
            for block in zip(*self.steps.values(), strict=True)
        ]
        return [max(values) / min(values) for values in seen if len(values) > 1]

    @property
    def decades(self) -> tuple[int, int]:
        """Exponents of the powers of ten around all G_snr: an axis that does not stretch what stays level."""
        values = [math.log10(value) for block in self.steps.values() for value in block if value is not None]
        low = math.floor(min(values, default=0))
        return low, max(math.ceil(max(values, default=1)), low + 1)

    def write(self, folder: Path) -> None:
        """Write `gsnr.json` into `folder`, with four significant digits."""
        steps = {
            step: [None if value is None else float(f"{value:.4g}") for value in values]
            for step, values in self.steps.items()
        }
        write_aside(folder / GSNR, json.dumps({"d": self.d, "steps": steps}, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, folder: Path) -> BlockGSNR | None:
        """Read `gsnr.json` of `folder`, None if there is none; `DamagedRun` if it is something else."""
        with damage_named(folder / GSNR, "the g-SNR of a run"):
            return cls.of(_json(folder / GSNR)) if (folder / GSNR).exists() else None

    @classmethod
    def of(cls, fields: Any) -> BlockGSNR:
        """Make one of its JSON; ValueError if it is none."""
        found: BlockGSNR = check(cls, fields)
        _check_rising(found.steps)
        for step, values in found.steps.items():
            if len(values) != len(found.d):
                raise ValueError(f"steps.{step} has {len(values)} values of {len(found.d)} blocks")
        return found


@dataclass(frozen=True)
class Run:
    """A run as it is read back.

    Attributes:
        record: `run.json`.
        training, evaluations: the lines of `metrics.jsonl`.
        gsnr: `gsnr.json`, or None.
        pictures, text: what the model made, a PNG and a text, or None.
    """

    record: Record
    training: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    gsnr: BlockGSNR | None = None
    pictures: bytes | None = None
    text: str | None = None

    @classmethod
    def of(cls, record: Record, training: Any, evaluations: Any, *rest: Any) -> Run:
        """Make one of its record, of JSON for its curves, and of the rest; ValueError if they are none."""
        training, evaluations = _checked(training, evaluations)
        metric = record.task["metric"]
        if any(metric not in line for line in evaluations):
            raise ValueError(f"an evaluation lacks {metric!r}, by which the task is judged")
        return cls(record, training, evaluations, *rest)

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read the files of `folder`; `DamagedRun` for the one that is not what a run leaves."""
        record, gsnr = Record.read(folder), BlockGSNR.read(folder)
        with damage_named(folder / PICTURES, "a picture"):
            pictures = content(folder / PICTURES)
        with damage_named(folder / TEXT, "a text"):
            text = content(folder / TEXT)
            written = None if text is None else text.decode()
        with damage_named(folder / METRICS, _LINES):
            training, evaluations = _read_metrics(folder)
            if record.status == "finished" and not evaluations:
                raise ValueError("it lacks the last evaluation, and the run has finished")
            return cls.of(record, training, evaluations, gsnr, pictures, written)


def check_metrics(folder: Path, keep: int) -> None:
    """Raise `DamagedRun` unless `metrics.jsonl` can be cut after `keep` bytes, whole lines of a run."""
    with damage_named(folder / METRICS, _LINES):
        if (folder / METRICS).is_symlink():
            raise ValueError("it is a link, and the file that it points to would be cut")
        _read_metrics(folder, keep)


def _read_metrics(folder: Path, keep: int | None = None) -> tuple[list[Any], list[Any]]:
    """Return the lines of training and of evaluations, of the first `keep` bytes if that is given."""
    found = content(folder / METRICS) or b""
    whole = found[: found.rfind(b"\n") + 1]  # a run that is killed may leave the half of a line
    if keep is not None:
        whole = found[:keep]
        if len(found) < keep or (whole and not whole.endswith(b"\n")):
            raise ValueError(f"it has {len(found)} bytes, where the checkpoint beside it knows {keep}")
    lines = [
        check(dict[str, Any], parse(line), f"line {number}")
        for number, line in enumerate(whole.decode().splitlines(), start=1)
    ]
    training = [line for line in lines if "train_loss" in line]
    evaluations = [line for line in lines if "train_loss" not in line]
    return _checked(training, evaluations)


def _checked(training: Any, evaluations: Any) -> tuple[list[Any], list[Any]]:
    """Return the lines of `metrics.jsonl`; ValueError if one is none, or their steps do not rise."""
    curves = (
        check(list[TrainingLine], training, "training"),
        check(list[EvaluationLine], evaluations, "evaluations"),
    )
    for lines in curves:
        _check_rising(line["step"] for line in lines)
    return curves


def _check_rising(steps: Iterable[int]) -> None:
    for step, following in pairwise(steps):
        if following <= step:
            raise ValueError(f"step {following} follows step {step}")


class MetricsFile:
    """`metrics.jsonl` of a run, open for appending whole lines."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Open it, cut it after the `keep` bytes that a checkpoint knows."""
        self._file = (folder / METRICS).open("ab")
        self._file.truncate(keep)

    def append(self, line: dict[str, float]) -> None:
        """Append a line: six significant digits are more than two machines agree on."""
        rounded = {
            key: value if isinstance(value, int) else float(f"{value:.6g}") for key, value in line.items()
        }
        self._file.write(json.dumps(rounded, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Wait until the lines are on disk; how many bytes they are."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
