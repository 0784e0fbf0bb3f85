"""Real processes that train together: gloo on the CPU, one thread each, and never a hang.

Each is a fork of one process that has imported what they need: a fork starts at once, torchrun in seconds.
"""

from __future__ import annotations

import multiprocessing
import os
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
    "sgd_sai.lab.compare",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.parallel",
    "transformers.models.gpt2.modeling_gpt2",
]
#: Seconds after which ranks hang: many, since all takes long on a busy machine.
PATIENCE = 600

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def world(size: int, scenario: Callable[..., Any], *args: Any) -> list[Any]:
    """What `scenario(*args)` returns on each of `size` ranks; AssertionError with what they raised."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = start(size, folder, scenario, *args)
        hung = ended(ranks)
        errors = [file.read_text("utf-8") for file in sorted(Path(folder).glob("*.error"))]
        assert not errors, "\n".join(errors)
        assert not hung, f"ranks {hung} still run after {PATIENCE} s"
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size)]


def ended(ranks: list[Any]) -> list[int]:
    """Wait for the ranks to end; those that do not are killed, and returned."""
    deadline = time.monotonic() + PATIENCE
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
    return hung


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
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=PATIENCE / 2)
        )
        args = torch.load(f"{folder}/arguments.pt", weights_only=False)
        torch.save(scenario(*args), f"{folder}/{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}", "utf-8")
        raise SystemExit(1) from None


def start_as_torchrun(size: int, call: Callable[..., None], *args: Any) -> list[Any]:
    """The processes of `size` ranks, started, which call what torchrun would have them run.

    They are told of each other as torchrun tells them, and make their own process group.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    ranks = [
        _context.Process(
            target=_called,
            args=({**told, "RANK": str(rank), "LOCAL_RANK": str(rank)}, call, *args),
            daemon=True,
        )
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
        process.store = store  # by which they meet: it lives as long as they do
    return ranks


def _called(told: dict[str, str], call: Callable[..., None], *args: Any) -> None:
    os.environ.update(told)
    torch.set_num_threads(1)
    call(*args)
