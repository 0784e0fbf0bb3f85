"""Gradient release: each parameter moves inside backward, and its gradient is freed, before the next exists.

The first step needs the g-SNR of all blocks for their maximum. It is an ordinary one, with all gradients,
unless the optimizer has `measure_first=True`: then the first backward measures each gradient and frees it,
nothing moves, and gradients never exist together. That costs one batch, and is the tutorial's variant.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sgd_sai import first_gradient
from sgd_sai.distributed.layout import laid_out_as, part_of
from sgd_sai.gsnr import Moments, check_dense, measure
from sgd_sai.messages import given_name, name_of, warn
from sgd_sai.optimizer import SGDSaI
from sgd_sai.options import Group
from sgd_sai.prepared import PreparedStep, prepared
from sgd_sai.released import Released


class GradientRelease:
    """Hooks that make an `SGDSaI` step inside backward; `gradient_release` makes one."""

    def __init__(self, model: nn.Module, optimizer: SGDSaI) -> None:
        """See `gradient_release`."""
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "model: given a DistributedDataParallel, whose buckets hold all gradients in backward; "
                "allowed: a model on one rank, or cut by fully_shard (FSDP2) or tensor parallelism"
            )
        own = {param for group in optimizer.param_groups for param in group["params"]}
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p not in own]
        if missing:
            raise ValueError(
                f"optimizer: lacks {len(missing)} parameter(s) of the model, first {missing[0]!r}"
            )
        # The optimizer keeps this object, by its hook of a step, and is not kept by it: all goes when the
        # optimizer does, with no cycle that would wait for Python's collector.
        self._optimizer = weakref.ref(optimizer)
        self._measured: dict[Tensor, Moments] = {}
        self._places: dict[Tensor, tuple[int, int]] = {}  # group and place in it; see `_place_of`
        self._prepared: dict[Tensor, PreparedStep | None] = {}
        self._hooks: dict[Tensor, Any] = {}
        self._hook_all(optimizer)
        self._before = optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """From now on gradients stay, and `step` moves the parameters."""
        for handle in (self._before, *self._hooks.values()):
            handle.remove()
        for param in self._hooks:
            _forget(param)
        self._hooks.clear()

    def accumulated(self, param: Tensor) -> None:
        """Move a parameter whose gradient is there, or measure that; then free it."""
        optimizer = self._optimizer()
        place = None if optimizer is None else self._place_of(param, optimizer.param_groups)
        if optimizer is None or place is None:
            return  # it has left the optimizer, or that is gone
        group, index = place
        ready = self._prepared.get(param)
        if ready is not None and ready(optimizer, group, index):
            param.grad = ready.released
            return
        if first_gradient.can_step_alone(optimizer, group):
            optimizer.step_alone(group, index)
            self._prepared[param] = prepared(optimizer, group, index)
        elif group["measure_first"]:
            grad = cast(Tensor, param.grad)
            check_dense([(name_of(group, index), grad)])
            part = part_of(laid_out_as(grad, param), name=given_name(group, index))
            [self._measured[param]] = measure([[part]])
        else:
            return  # the block's scale needs gradients that are still to come; `step` moves it
        param.grad = Released(param)

    def _place_of(self, param: Tensor, groups: list[Group]) -> tuple[Group, int] | None:
        """The group of a parameter, and its place there: groups are replaced, added and taken away."""
        number, index = self._places.get(param, (0, 0))
        if not _is_at(param, groups, number, index):
            places = [(n, i) for n, group in enumerate(groups) for i in range(len(group["params"]))]
            self._places = {groups[n]["params"][i]: (n, i) for n, i in places}
            if param not in self._places:
                return None
            number, index = self._places[param]
        return groups[number], index

    def _hook_all(self, optimizer: SGDSaI) -> None:
        """Hook the parameters that have no hook yet: groups may have been added."""
        # Python's collector cannot see what a parameter holds: what its hook held would live on for ever.
        hook = partial(_accumulated, weakref.ref(self))
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.requires_grad and param not in self._hooks and not is_lazy(param):
                    _end_others(param)
                    self._hooks[param] = param.register_post_accumulate_grad_hook(hook)

    def _before_step(self, optimizer: SGDSaI, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Settle what backward has done; where a closure is yet to do it, once that has returned."""
        closure = kwargs.get("closure", *args[1:])
        if closure is None:
            self._settle(optimizer)
            return None

        def settled() -> Any:
            loss = closure()
            self._settle(optimizer)
            return loss

        return (args[0], settled), {}

    def _settle(self, optimizer: SGDSaI) -> None:
        self._hook_all(optimizer)
        for group in optimizer.param_groups:
            for param in group["params"]:
                _forget(param)
        if self._measured:
            first_gradient.latch_measured(optimizer, self._measured)
            self._measured.clear()


def _forget(param: Tensor) -> None:
    """Remove what stands where a gradient was, which no step wants any more."""
    if isinstance(param.grad, Released):
        param.grad = None


def _end_others(param: Tensor) -> None:
    """End the release of another optimizer, as of a cell of a notebook that is run again."""
    hooks = getattr(param, "_post_accumulate_grad_hooks", None) or {}
    for key, hook in list(hooks.items()):
        if not (isinstance(hook, partial) and hook.func is _accumulated):
            continue
        other = hook.args[0]()
        if other is None:  # its optimizer is gone, and so is what it has moved in vain
            del hooks[key]
            _forget(param)
        else:
            other.remove()
            warn(
                "gradient_release: a parameter of the model was released already, perhaps with another "
                "optimizer; that release has ended"
            )


def _is_at(param: Tensor, groups: list[Group], number: int, index: int) -> bool:
    if number >= len(groups) or index >= len(groups[number]["params"]):
        return False
    return groups[number]["params"][index] is param


@torch._disable_dynamo  # type: ignore[attr-defined]  # compiled autograd reorders what a hook writes
def _accumulated(this: weakref.ref[GradientRelease], param: Tensor) -> None:
    if (release := this()) is not None:
        release.accumulated(param)


def gradient_release(model: nn.Module, optimizer: SGDSaI) -> GradientRelease:
    """Let `optimizer` move each parameter of `model` as soon as backward has its gradient, and free that.

    Training stays as it is written: backward, `optimizer.step()`, `scheduler.step()`. After the first step
    `optimizer.step()` finds all moved already; learning rates are those that hold during backward, which are
    the same. The result is bit for bit that of ordinary training.

    What needs all gradients at once, or changes them after backward, cannot work, and says so: clipping by
    the global norm, accumulating over several backwards, `GradScaler`, `DistributedDataParallel`. Clip each
    gradient by a hook of its own instead; make the batch larger by activation checkpointing.

    Groups may be added, and parameters frozen or unfrozen: what changes counts from the next `step` on.

    It lasts as long as the optimizer, and keeps neither that nor the model alive. Where a model outlives its
    optimizer, gradients stay from then on.

    Args:
        model: every parameter that requires a gradient must be in the optimizer.
        optimizer: with `measure_first=True`, gradients never exist together; without, they do in the first
            step.

    Returns:
        A handle, which need not be kept; `remove()` ends it.

    Raises:
        ValueError: the optimizer lacks a parameter of the model, or that is a `DistributedDataParallel`.
    """
    return GradientRelease(model, optimizer)
