"""FSDP2: shard parameters, gradients and momentum, and resume exactly from a distributed checkpoint.

torchrun --standalone --nproc-per-node 2 examples/fsdp2.py
"""

import tempfile
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sgd_sai import SGDSaI

dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cuda":
    torch.cuda.set_device(rank)
mesh = init_device_mesh(device, (ranks,))

images, digits = load_digits(return_X_y=True)
x, y = torch.tensor(images, device=device).float() / 16, torch.tensor(digits, device=device)


def sharded() -> tuple[nn.Module, SGDSaI]:
    """Make the same weights on every rank and shard them; g-SNR is that of the whole tensors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 255), nn.ReLU(), nn.Linear(255, 10)).to(device)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, SGDSaI(model.parameters(), lr=1.0)


def train(model: nn.Module, optimizer: SGDSaI, steps: range) -> list[float]:
    """Train on this rank's part of every batch and return the losses, averaged over the ranks."""
    losses = []
    for step in steps:
        chosen = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))[rank::ranks]
        loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / ranks)
    return losses


shared = tempfile.TemporaryDirectory() if rank == 0 else None
folder = [shared.name if shared else ""]
dist.broadcast_object_list(folder)

model, optimizer = sharded()
losses = train(model, optimizer, range(100))
weights, state = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
uninterrupted = train(model, optimizer, range(100, 200))

model, optimizer = sharded()
weights, state = get_state_dict(model, optimizer)
dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
resumed = train(model, optimizer, range(100, 200))

if rank == 0:
    print("resumed, equal to the uninterrupted run:", resumed == uninterrupted)
    print(f"loss {losses[0]:.2f} -> {sum(resumed[-20:]) / 20:.2f}")
dist.barrier()
dist.destroy_process_group()
time.sleep(0.2)  # gloo's threads let go of tensors a moment later, and abort if Python is ending by then
