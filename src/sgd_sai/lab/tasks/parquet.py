"""Parquet files, as data sets come from the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from sgd_sai.lab.tasks.problem import needs

Content = TypeVar("Content")


def read(files: list[Path], kind: str, task: str, take: Callable[[Any], Content]) -> Content:
    """Return the part of the files' rows, a datasets.Dataset, that `take` takes.

    ValueError, one line that says as what `kind` they were read, if it raises one or they are not parquet.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise needs("datasets", task) from None
    datasets.disable_progress_bars()
    logger = logging.getLogger("datasets")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # what it would log is in the error
    try:
        with TemporaryDirectory() as cache:  # or it would keep a copy for good
            table = datasets.Dataset.from_parquet(list(map(str, files)), cache_dir=cache, keep_in_memory=True)
        return take(table)
    except (OSError, ValueError, TypeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        names = ", ".join(map(str, files))
        raise ValueError(f"--data: cannot read {names} as {kind}: {reason}") from None
    finally:
        logger.setLevel(before)
