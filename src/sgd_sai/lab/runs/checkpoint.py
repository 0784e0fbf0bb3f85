"""The state of a run on disk: weights, optimizer state, random generators, step.

A file of `torch.save`, and after its end the sha256 of it: torch reads the file as it is, and does not see
flipped bits by itself. The first checkpoints have no sha256, and no identity.
"""

from __future__ import annotations

import hashlib
import io
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgd_sai.files import content, write_aside
from sgd_sai.lab.faults import damage_named
from sgd_sai.lab.records import CHECKPOINT, RunConfig, differences
from sgd_sai.lab.runs import processes
from sgd_sai.lab.schema import AtLeastOne, Count, NotNegative, check

_MARK = b"\nsha256 "
_DIGITS = 64


class Progress(TypedDict):
    """How far a run has come; `metrics_bytes` of its metrics belong to the checkpoint."""

    step: AtLeastOne
    seconds: NotNegative
    metrics_bytes: Count


class _OptimizerState(TypedDict):
    """Of an optimizer that is made of two, as Muon and AdamW, each of the "parts" is one."""

    state: object
    param_groups: list[dict[str, object]]


class _States(Progress):
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: Tensor
    cuda_rng: list[Tensor]


class _Checkpoint(_States, total=False):
    identity: dict[str, Any]


def save(
    folder: Path, model: nn.Module, optimizer: Optimizer, config: RunConfig, data: str, progress: Progress
) -> None:
    """Write the checkpoint of `folder`.

    Args:
        folder: of the run.
        model, optimizer: their states, without frozen parameters; whole on rank 0 where FSDP shards them.
        config, data: of which run it is.
        progress: what `restore` returns.
    """
    if config.fsdp:
        of_model, of_optimizer = processes.whole_state(model, optimizer)
    else:
        of_model, of_optimizer = model.state_dict(), optimizer.state_dict()
    states = {
        "model": _trained(model, of_model),
        "optimizer": of_optimizer,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),
        "identity": config.identity(data),
    }
    written = io.BytesIO()
    torch.save({**states, **progress}, written)
    written.write(_seal(written.getvalue()))
    write_aside(folder / CHECKPOINT, written.getvalue())


def restore(
    folder: Path, model: nn.Module, optimizer: Optimizer, config: RunConfig, data: str
) -> Progress | None:
    """Take over the checkpoint of `folder` in every process; return its progress, None if there is none.

    Raises:
        DamagedRun: the file is not a checkpoint of this run, or not as it was written.
    """
    path, found = processes.decided(partial(_read, folder / CHECKPOINT))
    if found is None:
        return None
    with damage_named(path, "a checkpoint of this run; remove its folder"):
        try:
            saved = check(_Checkpoint, torch.load(io.BytesIO(found), weights_only=True, map_location="cpu"))
            _check_fits(saved, model, optimizer, config, data)
            of_optimizer = dict(saved["optimizer"])
            if config.fsdp:
                processes.load_whole_state(model, optimizer, saved["model"], of_optimizer)
            else:
                model.load_state_dict(saved["model"], strict=False)  # frozen parameters are not in it
                optimizer.load_state_dict(of_optimizer)
            torch.set_rng_state(saved["rng"])
            torch.cuda.set_rng_state_all(saved["cuda_rng"])
        except (OSError, ValueError):
            raise
        except Exception as error:  # torch raises as many kinds as there are ways to be broken
            raise ValueError(f"{type(error).__name__}: {error}") from None
    return {"step": saved["step"], "seconds": saved["seconds"], "metrics_bytes": saved["metrics_bytes"]}


def _seal(of: bytes) -> bytes:
    return _MARK + hashlib.sha256(of).hexdigest().encode()


def _read(path: Path) -> tuple[Path, bytes | None]:
    """Return the content of a checkpoint as it was sealed, None if there is none, and where it is."""
    with damage_named(path, "as it was written; remove its folder"):
        found = content(path)
        if found is None:
            return path, None
        whole, seal = found[: -len(_MARK) - _DIGITS], found[-len(_MARK) - _DIGITS :]
        if seal.startswith(_MARK) and seal != _seal(whole):
            raise ValueError("its sha256 differs")
        return path, found


def _trained(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a model without its frozen parameters."""
    params = model.named_parameters(remove_duplicate=False)  # tied weights have two names
    frozen = {name for name, param in params if not param.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def _check_fits(
    saved: _Checkpoint, model: nn.Module, optimizer: Optimizer, config: RunConfig, data: str
) -> None:
    """Raise ValueError unless it is of this run, and holds its trained parameters and buffers, no others."""
    asked = config.identity(data)
    if other := differences(saved.get("identity", asked), asked):
        raise ValueError(f"it is of a run with {other}")
    if saved["step"] > config.steps:
        raise ValueError(f"step {saved['step']} of {config.steps}")
    held, needed = _shapes(saved["model"]), _shapes(_trained(model, model.state_dict()))
    for name in dict.fromkeys((*needed, *held)):
        if held.get(name) != needed.get(name):
            raise ValueError(f"{name} is {held.get(name, 'missing')}, not {needed.get(name, 'in the model')}")
    of_optimizer = saved["optimizer"]
    parts = check(list[_OptimizerState], of_optimizer.get("parts", [of_optimizer]), "optimizer")
    groups = [group for part in parts for group in part["param_groups"]]
    for group, built in zip(groups, optimizer.param_groups, strict=True):
        if missing := sorted(built.keys() - group.keys()):
            raise ValueError(f"it is of another optimizer, without {missing[0]!r}")


def _shapes(state: dict[str, Tensor]) -> dict[str, str]:
    return {name: f"{tuple(value.shape)} {value.dtype}" for name, value in state.items()}
