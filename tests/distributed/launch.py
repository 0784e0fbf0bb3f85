"""Train a tiny transformer the way named, under torchrun; the lines are in docs/distributed.md.

torchrun --nproc-per-node 2 tests/distributed/launch.py ddp --out weights.pt
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from tiny import BATCH, LATE, Tiny, batch, loss_of, whole
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sgd_sai import SGDSaI
from sgd_sai.lab.runs import processes

STEPS = 5
LR = 0.5


class WithLoss(nn.Module):
    """The model as transformers' Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Tiny()

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"loss": loss_of(self.model, tokens, LATE)}


def loop(model: nn.Module, optimizer: Any, backward: Any = Tensor.backward) -> None:
    each = BATCH // dist.get_world_size()
    for step in range(STEPS):
        tokens = batch(step)[dist.get_rank() * each :][:each]
        backward(loss_of(model, tokens, LATE))
        optimizer.step()
        optimizer.zero_grad()


def ddp() -> nn.Module:
    dist.init_process_group("gloo")
    model = Tiny()
    wrapped = DistributedDataParallel(model)
    loop(wrapped, SGDSaI(wrapped.parameters(), lr=LR))
    return model


def fsdp2() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    model = Tiny()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loop(model, SGDSaI(model.parameters(), lr=LR))
    return model


def accelerate() -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = Tiny()
    wrapped, optimizer = accelerator.prepare(model, SGDSaI(model.parameters(), lr=LR))
    loop(wrapped, optimizer, accelerator.backward)
    return model


def trainer() -> nn.Module:
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        "unused", max_steps=STEPS, per_device_train_batch_size=BATCH // int(os.environ["WORLD_SIZE"]),
        learning_rate=LR, lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, ddp_backend="gloo",
        save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    data = [{"tokens": tokens} for step in range(STEPS) for tokens in batch(step)]
    model = WithLoss()
    InOrder(model, arguments, train_dataset=data, optimizer_cls_and_kwargs=(SGDSaI, {"lr": LR})).train()
    return model.model


WAYS = {way.__name__: way for way in (ddp, fsdp2, accelerate, trainer)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--out", required=True, help="where rank 0 writes the weights")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trained = WAYS[args.way]()
    weights = {name: whole(p) for name, p in trained.named_parameters()}
    if dist.get_rank() == 0:
        torch.save(weights, args.out)
    processes.part()
