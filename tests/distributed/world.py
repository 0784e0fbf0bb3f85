"""Real processes that train together: gloo on the CPU, one thread each, and never a hang."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

#: Imported once; each rank is a fork of the process that did.
PRELOADED = [
    "sgd_sai",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.parallel",
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def world(size: int, scenario: Callable[..., Any], *args: Any, seconds: float = 600) -> list[Any]:
    """What `scenario(*args)` returns on each of `size` ranks; AssertionError with what they raised."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = start(size, folder, scenario, *args)
        deadline = time.monotonic() + seconds
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
        errors = [file.read_text("utf-8") for file in sorted(Path(folder).glob("*.error"))]
        assert not errors, "\n".join(errors)
        assert not hung, f"ranks {hung} still run after {seconds} s"
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size)]


def start(size: int, folder: str, scenario: Callable[..., Any], *args: Any) -> list[Any]:
    """The processes of `size` ranks, started; what they return or raise is written to the empty `folder`."""
    torch.save(args, f"{folder}/arguments.pt")
    ranks = [
        _context.Process(target=_rank, args=(rank, size, folder, scenario), daemon=True)
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    return ranks


def _rank(rank: int, size: int, folder: str, scenario: Callable[..., Any]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        store = dist.FileStore(f"{folder}/store", size)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=300)
        )
        args = torch.load(f"{folder}/arguments.pt", weights_only=False)
        torch.save(scenario(*args), f"{folder}/{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}", "utf-8")
        raise SystemExit(1) from None
