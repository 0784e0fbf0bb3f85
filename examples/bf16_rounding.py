"""Weights in bfloat16 without a float32 copy: stochastic rounding keeps updates that nearest rounding loses.

python examples/bf16_rounding.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from sgd_sai import SGDSaI

images, digits = load_digits(return_X_y=True)
x, y = torch.tensor(images).bfloat16() / 16, torch.tensor(digits)


def train(rounding: str) -> list[float]:
    """Train from the same weights on the same batches and return the losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).bfloat16()
    optimizer = SGDSaI(model.parameters(), lr=0.03, rounding=rounding, state_dtype=torch.bfloat16)
    batches = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(300):
        chosen = torch.randint(len(x), (64,), generator=batches)
        loss = nn.functional.cross_entropy(model(x[chosen]).float(), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


for rounding in ("nearest", "stochastic"):  # use the last one
    losses = train(rounding)
    print(f"{rounding:>10}: ", end="")
    print(f"loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f}")
