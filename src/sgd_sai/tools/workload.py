"""A model, its batches and its loss: a task of the lab, or the user's own `module:factory`.

A factory is a callable without arguments. It returns

    (model, batches)            model(**batch), model(*batch) or model(batch), by what a batch is, gives the
                                loss: a tensor, or an output with .loss or ["loss"], as transformers has
    (model, batches, loss_fn)   loss_fn(model, batch) gives it

where `batches` can be iterated: a list, a DataLoader, a generator. One that ends is begun anew if it can be.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgd_sai.diagnostics import Measurement, measure_blocks
from sgd_sai.factory import import_factory
from sgd_sai.lab.tasks import TASKS

#: (model, batch) → loss, a tensor of one element.
LossFn = Callable[[nn.Module, Any], Tensor]


class Workload:
    """A model that can be trained from the same start, on the same batches, as often as asked for.

    Args:
        name: of the task or factory.
        model: it is put in training mode.
        batch: step → batch.
        loss_fn: see `LossFn`.
        clip: largest global gradient norm, or None.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        batch: Callable[[int], Any],
        loss_fn: LossFn,
        clip: float | None = None,
        seed: int = 0,
    ) -> None:
        """See the class."""
        self.name, self.model, self.clip, self.seed = name, model.train(), clip, seed
        self._batch, self._loss_fn = batch, loss_fn
        self._start = copy.deepcopy(model.state_dict())

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that are trained, with their names."""
        return [(name, param) for name, param in self.model.named_parameters() if param.requires_grad]

    def restart(self) -> None:
        """Put the model back to where it was at first."""
        self.model.load_state_dict(self._start)
        self.model.zero_grad()

    def backward(self, step: int) -> float:
        """Leave the gradient of the batch of `step` in `.grad`, clipped; return the loss, finite or not.

        Raises:
            ValueError: one line: the loss is no single number, or depends on no parameter; or the user's
                code has raised something.
        """
        batch = self._batch(step)
        self.model.zero_grad()
        torch.manual_seed(self.seed + step)  # dropout: the same for every optimizer
        with _one_line("the forward pass"):
            loss = self._loss_fn(self.model, batch)
        _check_loss(loss)
        with _one_line("the backward pass"):
            loss.backward()  # type: ignore[no-untyped-call]
        if all(param.grad is None for _, param in self.named):
            raise ValueError("gradients: after backward, no parameter of the model has one")
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        return float(loss.detach())

    def measure(self) -> Measurement:
        """Measure the gradient that `backward` has left: it is not scaled, even if it is large."""
        return measure_blocks(self.named, scaler=torch.amp.GradScaler("cpu", enabled=False))


def load_workload(given: str, *, seed: int, clip: float | None = None) -> Workload:
    """Load a task of the lab by its name, or the model and batches that `module:factory` returns.

    Args:
        given: the name, or module:factory, looked for in the current folder too.
        seed: of the initial weights, and of a task's batches.
        clip: largest global gradient norm; None: a task's own, and no clipping for a factory.

    Raises:
        ValueError: one line that says what is wrong.
    """
    torch.manual_seed(seed)
    if given in TASKS:
        task = TASKS[given]
        problem = task.load(None)
        return Workload(
            given,
            problem.model(),
            lambda step: problem.batch(seed, step),
            problem.loss,
            task.clip if clip is None else clip,
            seed,
        )
    if ":" not in given:
        raise ValueError(f"workload: given {given!r}; allowed: {', '.join(TASKS)}, or module:factory")
    factory = import_factory(given)
    with _one_line(given):
        made = factory()
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
        raise ValueError(
            f"{given}: returned {_described(made)}; allowed: (model, batches) or (model, batches, loss_fn)"
        )
    model, batches, *rest = made
    if rest and not callable(rest[0]):
        raise ValueError(f"{given}: its loss_fn is {_described(rest[0])}; allowed: a callable (model, batch)")
    if not any(param.requires_grad for param in model.parameters()):
        raise ValueError(f"{given}: its model has no parameter that requires a gradient")
    return Workload(given, model, _Batches(given, batches), rest[0] if rest else own_loss, clip, seed)


def step_quietly(optimizer: Optimizer) -> None:
    """Take a step without the warning of unlatched blocks, which the commands flag by themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SGDSaI", UserWarning)
        optimizer.step()


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that the model itself computes."""
    if isinstance(batch, Mapping):
        output = model(**batch)
    elif isinstance(batch, tuple | list):
        output = model(*batch)
    else:
        output = model(batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if loss is None:
        raise ValueError("the model's output has no loss: put labels in the batch, or return a loss_fn")
    return loss  # type: ignore[no-any-return]  # _check_loss looks at what it is


class _Batches:
    """step → batch, from anything that can be iterated; the batches that were used are kept."""

    def __init__(self, name: str, batches: Any) -> None:
        self._name, self._batches, self._kept = name, batches, list[Any]()
        try:
            self._iterator: Iterator[Any] = iter(batches)
        except TypeError:
            raise ValueError(
                f"{name}: its batches are {_described(batches)}; allowed: something to iterate over"
            ) from None

    def __call__(self, step: int) -> Any:
        while len(self._kept) <= step:
            with _one_line(f"{self._name}: making a batch"):
                batch = next(self._iterator, self)  # self: at its end
                if batch is self:
                    self._iterator = iter(self._batches)
                    batch = next(self._iterator, self)
            if batch is self:
                raise ValueError(
                    f"{self._name}: its batches ended after {len(self._kept)}; give a list or a DataLoader, "
                    "or fewer --steps"
                )
            self._kept.append(batch)
        return self._kept[step]


class _one_line:
    """Turn an exception of the user's code into a `ValueError` of one line that says where it was."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            message = " ".join(str(error).split())
            raise ValueError(f"{self.where} failed: {type(error).__name__}: {message}") from error


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        raise ValueError(f"loss: it is {_described(loss)}; allowed: a tensor of one real number")
    if not loss.requires_grad:
        raise ValueError("loss: it depends on no parameter that requires a gradient")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return f"a {type(value).__name__}"
