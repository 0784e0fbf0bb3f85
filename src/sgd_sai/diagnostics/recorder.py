"""G_snr while a model trains, with any optimizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sgd_sai import gsnr
from sgd_sai.gsnr import check_dense
from sgd_sai.messages import warn


class ScalarWriter(Protocol):
    """The one method of `torch.utils.tensorboard.SummaryWriter` that the recorder calls."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Log one number."""


class GSNRRecorder:
    """Record G_snr, ‖g‖ and σ of every block, each `every` steps.

    It reads the gradients that the optimizer's step has just used; all blocks are measured together and the
    host waits once. It changes nothing: the trajectory is the same bit for bit.

    Args:
        model: the module, or its (name, parameter) pairs.
        every: steps between two records. `sgd-sai gsnr … --cost` measures what that costs on a model.
        jsonl: a file to append to, one line a record: {"step", "gsnr": {name: G}, "norm", "sigma"}.
        writer: a TensorBoard `SummaryWriter`; gets "gsnr/<name>".
        eps, unbiased: as of `SGDSaI`.

    Attributes:
        step: how many steps have been seen; set it when a run is resumed.
        rows: the records, newest last, one dict a block, as `columns` gives them.

    A block without a finite, non-zero gradient is left out of a record.

    Raises:
        ValueError: `every` is not a positive integer; `jsonl` cannot be written to.

    Example:
        >>> recorder = GSNRRecorder(model, jsonl="gsnr.jsonl")
        >>> recorder.attach(optimizer)
        >>> ...  # train
        >>> pandas.DataFrame(recorder.columns()).pivot(index="step", columns="block", values="gsnr").plot()
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, nn.Parameter]],
        *,
        every: int = 10,
        jsonl: str | Path | None = None,
        writer: ScalarWriter | None = None,
        eps: float = 1e-8,
        unbiased: bool = False,
    ) -> None:
        """See the class."""
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every: given {every!r}; allowed: an integer ≥ 1")
        pairs = model.named_parameters() if isinstance(model, nn.Module) else model
        self.named = [(name, param) for name, param in pairs if param.requires_grad]
        self.every, self.writer, self.eps, self.unbiased = every, writer, eps, unbiased
        self.jsonl = None if jsonl is None else Path(jsonl)
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        if self.jsonl is not None:
            try:
                self.jsonl.touch()
            except OSError as error:
                raise ValueError(f"jsonl: cannot write to {jsonl}: {error.strerror}") from None

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Record after each `every`-th step of `optimizer`, the first one included.

        Returns:
            A handle; its `remove()` ends the recording.
        """

        def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.count()

        return optimizer.register_step_post_hook(after_step)

    def count(self) -> list[dict[str, Any]]:
        """Count a step, and record if it is the `every`-th; return the rows, none if it was not recorded."""
        self.step += 1
        return self.record() if (self.step - 1) % self.every == 0 else []

    def record(self) -> list[dict[str, Any]]:
        """Measure the gradients as they are, under the current `step`.

        Returns:
            A row for each block: step, block, gsnr, norm (‖g‖₂), sigma (σ).
        """
        present = [(name, param.grad) for name, param in self.named if param.grad is not None]
        if self.named and not present:
            warn(
                "GSNRRecorder: no parameter has a gradient, so nothing is recorded; gradient_release frees "
                "them inside backward, or zero_grad was called before"
            )
        check_dense((f"parameter {name!r}", grad) for name, grad in present)
        moments = gsnr.measure([[grad] for _, grad in present])
        rows = [
            {
                "step": self.step,
                "block": name,
                "gsnr": gsnr.g_snr(of_block, eps=self.eps, unbiased=self.unbiased),
                "norm": of_block.norm,
                "sigma": of_block.variance(unbiased=self.unbiased) ** 0.5,
            }
            for (name, _), of_block in zip(present, moments, strict=True)
            if of_block.measurable
        ]
        self.rows += rows
        self._write(rows)
        return rows

    def columns(self) -> dict[str, list[Any]]:
        """Return all records as columns of equal length, for `pandas.DataFrame` and `polars.DataFrame`."""
        return {key: [row[key] for row in self.rows] for key in ("step", "block", "gsnr", "norm", "sigma")}

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if self.jsonl is not None:
            line: dict[str, Any] = {"step": self.step}
            for key in ("gsnr", "norm", "sigma"):
                line[key] = {row["block"]: row[key] for row in rows}
            with self.jsonl.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.writer is not None:
            for tag, value in scalars(rows).items():
                self.writer.add_scalar(tag, value, self.step)


def scalars(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the rows of one record as {"gsnr/<block>": G_snr}, as loggers take them."""
    return {f"gsnr/{row['block']}": row["gsnr"] for row in rows}
