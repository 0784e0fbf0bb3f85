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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgd_sai.files import write_aside, write_json

RUN, METRICS, CHECKPOINT, GSNR = "run.json", "metrics.jsonl", "checkpoint.pt", "gsnr.json"
PICTURES, TEXT = "samples.png", "samples.txt"


class DamagedRun(ValueError):
    """A file of a run has not the form in which the lab writes it; one line, which begins with its path."""


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
    seed: int
    steps: int
    lr: float
    data: str | None
    threads: int
    weight_decay: float | None = None
    ranks: int = 1
    fsdp: bool = False


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
    status: str
    task: dict[str, Any]
    parameters: int
    tuning: dict[str, Any] | None
    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    date: str
    result: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Write `run.json` into `folder`."""
        write_json(folder / RUN, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read `run.json` of `folder`; `DamagedRun` if it is none."""
        path = folder / RUN
        try:
            return cls.of(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DamagedRun(f"{path}: not the record of a run ({type(error).__name__}: {error})") from None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Record:
        """Make one of its JSON; TypeError or KeyError if fields are missing or unknown."""
        return cls(**{**fields, "config": RunConfig(**fields["config"])})


@dataclass
class BlockGSNR:
    """`gsnr.json`.

    Attributes:
        d: block → how many elements it has, of all blocks that are trained.
        steps: step → the raw G_snr of each block of `d`, of the gradient which that step used; None where it
            was zero or not finite.
    """

    d: dict[str, int]
    steps: dict[int, list[float | None]]

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
        return math.floor(min(values, default=0)), math.ceil(max(values, default=1))

    def write(self, folder: Path) -> None:
        """Write `gsnr.json` into `folder`, with four significant digits."""
        steps = {
            step: [None if value is None else float(f"{value:.4g}") for value in values]
            for step, values in self.steps.items()
        }
        write_aside(folder / GSNR, json.dumps({"d": self.d, "steps": steps}, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, folder: Path) -> BlockGSNR:
        """Read `gsnr.json` of `folder`; `DamagedRun` if it is none."""
        path = folder / GSNR
        try:
            return cls.of(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedRun(f"{path}: not the g-SNR of a run ({type(error).__name__}: {error})") from None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> BlockGSNR:
        """Make one of its JSON; ValueError, TypeError, KeyError or AttributeError if it is none."""
        return cls(fields["d"], {int(step): values for step, values in fields["steps"].items()})


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
    def read(cls, folder: Path) -> Run:
        """Read the files of `folder`; `DamagedRun` for the one that is not what a run leaves."""
        record, path = Record.read(folder), folder / METRICS
        try:
            written = path.read_text("utf-8") if path.is_file() else ""
            whole = written[: written.rfind("\n") + 1]  # a run that is killed may leave the half of a line
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise DamagedRun(f"{path}: not JSON Lines ({error})") from None
        return cls(
            record,
            [line for line in lines if "train_loss" in line],
            [line for line in lines if "val_loss" in line],
            BlockGSNR.read(folder) if (folder / GSNR).is_file() else None,
            (folder / PICTURES).read_bytes() if (folder / PICTURES).is_file() else None,
            (folder / TEXT).read_text("utf-8") if (folder / TEXT).is_file() else None,
        )


class MetricsFile:
    """`metrics.jsonl` of a run, open for appending whole lines."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Open it, cut it after the `keep` bytes that a checkpoint knows; `DamagedRun` if it has less."""
        path = folder / METRICS
        self._file = path.open("ab")
        if (held := self._file.seek(0, os.SEEK_END)) < keep:
            self._file.close()
            raise DamagedRun(f"{path}: has {held} bytes, where the checkpoint beside it knows {keep}")
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
