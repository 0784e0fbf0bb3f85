"""G_snr while a model trains, with any optimizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sgd_sai import gsnr
from sgd_sai.distributed.layout import part_of
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

    Several optimizers of one model, as of a GAN, are attached one by one. A record then holds the blocks of
    the optimizer that has stepped, and its step number: `every` counts the steps of each optimizer alone.

    Args:
        model: the module, or its (name, parameter) pairs.
        every: steps of an optimizer between two records of it. `sgd-sai gsnr … --cost` measures what that
            costs on a model.
        jsonl: a file to append to, one line a record: {"step", "gsnr": {name: G}, "norm", "sigma"}.
        writer: a TensorBoard `SummaryWriter`; gets "gsnr/<name>".
        eps, unbiased: as of `SGDSaI`.

    Attributes:
        step: how many steps the optimizer that stepped last has taken. Set it when a run is resumed: all
            optimizers count on from there. `attach` takes the number of one of them.
        rows: the records, newest last, one dict a block, as `columns` gives them.

    A block without a finite, non-zero gradient is left out of a record.

    Raises:
        ValueError: `every` is not a positive integer, or `step` is set to what is not an integer ≥ 0; `jsonl`
            cannot be written to.

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
        self._model = model if isinstance(model, nn.Module) else list(model)
        self.every = _integer("every", every, least=1)
        self.writer, self.eps, self.unbiased = writer, eps, unbiased
        self.jsonl = None if jsonl is None else Path(jsonl)
        self._handles: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()
        #: Steps by optimizer, and by the recorder itself for those that are counted without one.
        self._taken: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        if self.jsonl is not None:
            try:
                self.jsonl.touch()
            except OSError as error:
                raise ValueError(f"jsonl: cannot write to {jsonl}: {error.strerror}") from None

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The model's trainable parameters with their names, as the model is now."""
        return [(name, param) for name, param in self._pairs() if param.requires_grad]

    @property
    def step(self) -> int:
        """How many steps the optimizer that stepped last has taken."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = self._begin = _integer("step", step, least=0)
        self._taken.clear()

    def attach(self, optimizer: Optimizer, *, step: int | None = None) -> RemovableHandle:
        """Record after each `every`-th step of `optimizer`, the first one included.

        Only its own parameters are recorded, those that `add_param_group` adds later too. Gradients that
        other losses have left in other parameters are not: none of its steps used them.

        Args:
            optimizer: one that holds parameters of the model, or a wrapper of accelerate, Lightning or
                schedulefree around it. An optimizer that is attached again is still recorded once.
            step: how many steps it has taken, for several optimizers of a run that is resumed; otherwise it
                counts on from the recorder's `step` as it was last set.

        Returns:
            A handle; its `remove()` ends the recording. The handle of an earlier `attach` then does nothing.

        Raises:
            ValueError: `optimizer` takes no hook, or `step` is not an integer ≥ 0.
        """
        inner = _unwrapped(optimizer)
        if not isinstance(inner, Optimizer):
            raise ValueError(
                f"optimizer: given {type(inner).__name__}; allowed: a torch.optim.Optimizer, or a wrapper "
                "that holds one as `optimizer` or `base`"
            )
        if step is not None:
            self._taken[inner] = _integer("step", step, least=0)

        def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.count(optimizer)

        if inner in self._handles:
            self._handles[inner].remove()
        handle = self._handles[inner] = inner.register_step_post_hook(after_step)
        return handle

    def count(self, optimizer: Optimizer | None = None) -> list[dict[str, Any]]:
        """Count a step, of `optimizer` if one is given, and record if it is the `every`-th.

        Returns:
            The rows, as of `record`; none if it was not recorded.
        """
        counted = self if optimizer is None else _unwrapped(optimizer)
        self._step = self._taken[counted] = self._taken.get(counted, self._begin) + 1
        return self.record(optimizer) if (self._step - 1) % self.every == 0 else []

    def record(self, optimizer: Optimizer | None = None) -> list[dict[str, Any]]:
        """Measure the gradients as they are, under the current `step`.

        Args:
            optimizer: whose parameters to measure; None: all that are trainable.

        Returns:
            A row for each block: step, block, gsnr, norm (‖g‖₂), sigma (σ).
        """
        named = self.named if optimizer is None else self._held_by(_unwrapped(optimizer))
        present = [(name, param.grad) for name, param in named if param.grad is not None]
        if optimizer is not None and not named:
            warn(
                "GSNRRecorder: the optimizer holds none of the model's parameters, so nothing is recorded; "
                "make the recorder of the model whose parameters the optimizer got"
            )
        elif named and not present:
            warn(
                "GSNRRecorder: no parameter has a gradient, so nothing is recorded; gradient_release frees "
                "them inside backward, or zero_grad was called before"
            )
        check_dense((f"parameter {name!r}", grad) for name, grad in present)
        moments = gsnr.measure([[part_of(grad, name=f"parameter {name!r}")] for name, grad in present])
        rows = [
            {
                "step": self.step,
                "block": name,
                "gsnr": gsnr.g_snr(of_block, eps=self.eps, unbiased=self.unbiased),
                "norm": of_block.norm,
                "sigma": of_block.deviation(unbiased=self.unbiased),
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

    def _pairs(self) -> Iterable[tuple[str, nn.Parameter]]:
        # A module is asked each time: layers are unfrozen, and added, while it trains.
        return self._model.named_parameters() if isinstance(self._model, nn.Module) else self._model

    def _held_by(self, optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
        # A step uses the gradients that are there, also where a parameter has been frozen since backward.
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        return [(name, param) for name, param in self._pairs() if id(param) in held]

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


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer that steps, of one in a wrapper, which runs no hooks of its own.

    accelerate and Lightning hold it as `optimizer`, schedulefree as `base`.
    """
    for attribute in ("optimizer", "base"):
        inner = getattr(optimizer, attribute, None)
        if isinstance(inner, Optimizer):
            return _unwrapped(inner)
    return optimizer


def _integer(name: str, value: int, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: given {value!r}; allowed: an integer ≥ {least}")
    return value
