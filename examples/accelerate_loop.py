"""Accelerate: accumulate and clip gradients, save the state, load it and continue.

accelerate launch examples/accelerate_loop.py     (or python …)
"""

import tempfile

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sgd_sai import SGDSaI

EPOCHS = 6

torch.manual_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2)
images, digits = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(digits))
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = SGDSaI(model.parameters(), lr=1.0)
loader = DataLoader(data, batch_size=32, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)


def epoch() -> list[float]:
    """Train on all data once and return the losses."""
    losses = []
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


with tempfile.TemporaryDirectory() as folder:
    losses = [loss for _ in range(EPOCHS // 2) for loss in epoch()]
    accelerator.save_state(folder)
    accelerator.load_state(folder)  # weights, momentum, and each block's scale
    losses += [loss for _ in range(EPOCHS // 2) for loss in epoch()]

accelerator.print(f"loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f}")
