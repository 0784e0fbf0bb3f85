"""Command-line arguments that commands share, and their one-line errors."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import torch

from sgd_sai.cli import CommandError
from sgd_sai.lab import provenance
from sgd_sai.lab.optimizers import DEFAULT, OPTIMIZERS, check_installed
from sgd_sai.lab.runs import processes
from sgd_sai.lab.runs.runner import load
from sgd_sai.lab.tasks import DEFAULT as DEFAULT_TASKS
from sgd_sai.lab.tasks import SCALES, TASKS

MOST = 2**31 - 1  # of steps, of a seed
MOST_AT_ONCE = 1024  # threads, jobs


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `compare`, `tune` and `sweep` take."""
    parser.add_argument(
        "--task",
        default=",".join(DEFAULT_TASKS),
        metavar="NAMES",
        help=f"{', '.join(TASKS)}, several with commas, or all (default: {', '.join(DEFAULT_TASKS)})",
    )
    parser.add_argument(
        "--scale",
        default="tiny",
        metavar="SCALE",
        help="tiny: two cores, 2 minutes a run (default); small: one GPU, 10 minutes; paper: the paper's",
    )
    parser.add_argument(
        "--optimizer",
        default=",".join(DEFAULT),
        metavar="NAMES",
        help=f"{', '.join(OPTIMIZERS)}, likewise (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument("--steps", metavar="N", help="steps of each run (default: the task's own)")
    parser.add_argument(
        "--data",
        metavar="PATH",
        type=Path,
        help="gpt, lora: a text file or a folder of them; cnn, diffusion: parquet files of images, labels; "
        "vit: a folder of pictures, one folder per class",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for the runs (default: a new one in runs/)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the runs in DIR where they stopped")
    parser.add_argument("--threads", metavar="N", help="threads of torch (default: torch's own number)")


def names(option: str, given: str, known: Iterable[str]) -> list[str]:
    """Return comma-separated names out of `known`, each once; `all` is all of them."""
    known = list(known)
    asked = [name.strip() for name in given.split(",")]
    if asked == ["all"]:
        return known
    for name in asked:
        if name not in known:
            raise CommandError(f"{option}: given {name!r}; allowed: {', '.join(known)}, or all")
    return list(dict.fromkeys(asked))


def optimizers(given: str) -> list[str]:
    """Return the optimizers that are asked for, all of them installed."""
    asked = names("--optimizer", given, OPTIMIZERS)
    try:
        check_installed(asked)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return asked


def integers(option: str, given: str) -> list[int]:
    """Return comma-separated integers ≥ 0, each once."""
    return list(dict.fromkeys(integer(option, word.strip(), least=0) for word in given.split(",")))


def integer(option: str, given: str, *, least: int, most: int = MOST) -> int:
    """Return an integer from `least` to `most`."""
    try:
        value = int(given)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        ends = f"≥ {least}" if value < least else f"from {least} to {most}"
        raise CommandError(f"{option}: given {_short(given)}; allowed: an integer {ends}")
    return value


def _short(given: str) -> str:
    return repr(given if len(given) <= 40 else f"{given[:40]}…")


def learning_rate(option: str, given: str) -> float:
    """Return a number > 0, as large or small as arithmetic with others of its kind allows."""
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise CommandError(f"{option}: given {_short(given)}; allowed: a finite number > 0")
    if not 1e-30 <= value <= 1e30:
        raise CommandError(f"{option}: given {_short(given)}; allowed: from 1e-30 to 1e30")
    return value


def threads(given: str | None, jobs: int = 1) -> int:
    """Return the threads that are asked for, or torch's own number divided among the jobs."""
    if given is None:
        return max(1, torch.get_num_threads() // jobs)
    return integer("--threads", given, least=1, most=MOST_AT_ONCE)


def tasks(given: str, scale: str, data: Path | None) -> list[str]:
    """Return the tasks that are asked for, by their own names, as in "gpt-small"."""
    if scale not in SCALES:
        raise CommandError(f"--scale: given {scale!r}; allowed: {', '.join(SCALES)}")
    asked = names("--task", given, TASKS)
    if data is not None and len(asked) > 1:
        raise CommandError(f"--data: given for {len(asked)} tasks; name one with --task")
    return [SCALES[scale][task].name for task in asked]


def check_data(tasks: Iterable[str], data: Path | None) -> None:
    """Load every task's data once, so that nothing is begun that cannot be carried out."""
    for task in tasks:
        try:
            load(task, None if data is None else str(data))
        except OSError as error:
            raise CommandError(f"--data: cannot read {data}: {error.strerror}") from None
        except ValueError as error:
            raise CommandError(str(error)) from None


def folder(out: Path | None, resume: bool, default: Path) -> Path:
    """Return the folder to write to. It is empty or missing, unless `resume`."""
    if out is None:
        if resume:
            raise CommandError("--resume: needs --out, the folder of the runs to go on with")
        return default
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise CommandError(
            f"--out: given {str(out)!r}; allowed: a name in the locale's encoding, as TensorBoard wants it"
        ) from None
    try:
        if out.exists() and not out.is_dir():
            raise CommandError(f"--out: {out} is a file; allowed: a folder")
        if not resume and out.is_dir() and any(out.iterdir()):
            raise CommandError(
                f"--out: {out} is not empty; give another folder, or --resume to go on with its runs"
            )
    except OSError as error:
        raise CommandError(f"--out: cannot use {out}: {error.strerror}") from None
    return out


def check_alone(command: str) -> None:
    """Raise if torchrun has started several processes."""
    if processes.started() > 1:
        raise CommandError(
            f"WORLD_SIZE: given {processes.started()}, by torchrun or the like, to `{command}`; allowed: one "
            "process, since every rank would train the same runs into one folder (--jobs has several side by "
            "side); `compare` takes several"
        )


def new_folder(command: str) -> Path:
    """Return the folder of a command that is given none."""
    return Path("runs", f"{command}-{provenance.now()[:19].replace(':', '')}")


def make_folder(out: Path, resume: bool) -> None:
    """Create `out`, for this process alone unless `resume`, and see that it can be written to.

    Another process may have begun to fill it since `folder` looked, while the data was loaded, say.
    """
    claim = out / ".begun"
    try:
        out.mkdir(parents=True, exist_ok=True)
        claim.touch(exist_ok=resume)
    except FileExistsError:
        raise CommandError(
            f"--out: another process has just begun runs in {out}; give another folder, or --resume to share "
            "its runs"
        ) from None
    except OSError as error:
        raise CommandError(f"--out: cannot write to {out}: {error.strerror}") from None
