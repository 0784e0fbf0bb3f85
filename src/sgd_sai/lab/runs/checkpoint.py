"""The state of a run on disk: weights, optimizer state, random generators, step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sgd_sai.files import write_aside
from sgd_sai.lab.records import CHECKPOINT, DamagedRun
from sgd_sai.lab.runs import processes


def save(folder: Path, model: nn.Module, optimizer: Optimizer, fsdp: bool, **progress: float) -> None:
    """Write the checkpoint of `folder`.

    Args:
        folder: of the run.
        model, optimizer: their states, without frozen parameters; whole on rank 0 where `fsdp` shards them.
        fsdp: whether each process has a part of the parameters.
        progress: numbers that `restore` returns.
    """
    content = io.BytesIO()
    torch.save(
        {
            **_state(model, optimizer, fsdp),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
            **progress,
        },
        content,
    )
    write_aside(folder / CHECKPOINT, content.getvalue())


def restore(folder: Path, model: nn.Module, optimizer: Optimizer, fsdp: bool) -> dict[str, Any] | None:
    """Take over the checkpoint of `folder` in every process; return its progress, None if there is none.

    Raises:
        DamagedRun: the file is not a checkpoint.
    """
    path = folder / CHECKPOINT
    content = processes.told(path.read_bytes() if path.exists() else None)
    if content is None:
        return None
    try:
        saved: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises as many kinds as there are ways to be broken
        raise DamagedRun(f"{path}: not a checkpoint ({type(error).__name__}); remove its folder") from None
    if fsdp:
        processes.load_whole_state(model, optimizer, saved.pop("model"), saved.pop("optimizer"))
    else:
        model.load_state_dict(saved.pop("model"), strict=False)  # frozen parameters are not in it
        optimizer.load_state_dict(saved.pop("optimizer"))
    torch.set_rng_state(saved.pop("rng"))
    torch.cuda.set_rng_state_all(saved.pop("cuda_rng"))
    return saved


def _state(model: nn.Module, optimizer: Optimizer, fsdp: bool) -> dict[str, Any]:
    """The states of the model, without its frozen parameters, and of the optimizer."""
    if fsdp:
        of_model, of_optimizer = processes.whole_state(model, optimizer)
    else:
        of_model, of_optimizer = model.state_dict(), optimizer.state_dict()
    params = model.named_parameters(remove_duplicate=False)  # tied weights have two names
    frozen = {name for name, param in params if not param.requires_grad}
    of_model = {name: value for name, value in of_model.items() if name not in frozen}
    return {"model": of_model, "optimizer": of_optimizer}
