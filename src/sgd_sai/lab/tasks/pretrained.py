"""Models that the lab trains itself, for tasks that start from a trained one; kept in a cache folder.

The folder is $SGD_SAI_CACHE, or sgd-sai in the user's cache folder. A model is found again by everything that
it depends on: the recipe, the data, torch's version.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from sgd_sai.files import write_aside
from sgd_sai.lab.schedules import Schedule
from sgd_sai.lab.tasks.problem import Problem

_SEED = 0
_REASON = 200  # characters of it
_BETAS, _DECAY, _CLIP = (0.9, 0.95), 0.01, 1.0


def cache() -> Path:
    """Return the cache folder, which need not exist."""
    given = os.environ.get("SGD_SAI_CACHE")
    return (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sgd-sai"
    )


def checkpoint(name: str) -> str:
    """Return the source of a published model: $SGD_SAI_CHECKPOINT, a folder, or `name` on the hub."""
    return os.environ.get("SGD_SAI_CHECKPOINT") or name


def loaded(load: Callable[..., Any], source: str, **options: Any) -> Any:
    """Return the model of `source` by `load`, a from_pretrained; ValueError, one line, if that fails."""
    try:
        return load(source, **options)
    except Exception as error:  # the libraries raise as many kinds as there are ways to be broken
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_REASON]
        raise ValueError(
            f"cannot load the model {source}: {reason}; SGD_SAI_CHECKPOINT may name a folder with it"
        ) from None


def weights(name: str, problem: Problem, steps: int, lr: float) -> dict[str, Tensor]:
    """Return the weights of the problem's model after `steps` of AdamW, from the cache or trained now.

    On the CPU one thread trains it, so that the number of threads makes no difference to the result.
    """
    batch = [tuple(part.shape) for part in problem.batch(_SEED, 0)]
    given = f"{name} {problem.data} {batch} {steps} {lr}"
    recipe = f"{given} {_SEED} {_BETAS} {_DECAY} {_CLIP} {torch.__version__}"
    file = cache() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.pt"
    if file.exists():
        try:
            held: dict[str, Tensor] = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # torch.load raises as many kinds as there are ways to be broken
            raise ValueError(f"{file}: not a trained model ({type(error).__name__}); remove it") from None
        return held
    trained = _train(name, problem, steps, lr)
    content = io.BytesIO()
    torch.save(trained, content)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_aside(file, content.getvalue())
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}; set SGD_SAI_CACHE to a folder") from None
    return trained


def digest(state: dict[str, Tensor]) -> str:
    """Return twelve digits that tell one set of weights from another."""
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(name.encode())
        whole.update(tensor.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:12]


def _train(name: str, problem: Problem, steps: int, lr: float) -> dict[str, Tensor]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads, schedule = torch.get_num_threads(), Schedule()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            model = problem.model().to(device)
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=lr, betas=_BETAS, weight_decay=_DECAY, fused=True
            )
            for step in track(range(steps), f"pre-training {name}, once", transient=True):
                for group in optimizer.param_groups:
                    group["lr"] = lr * schedule(step, steps)
                optimizer.zero_grad()
                problem.loss(model, problem.batch(_SEED, step)).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
                optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}
