"""Gradient release: each parameter is updated inside backward, and its gradient is then freed.

python examples/gradient_release.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from sgd_sai import SGDSaI, gradient_release

torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(digits)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

# measure_first: the first batch is only measured, so all gradients never exist together, not even then.
optimizer = SGDSaI(model.parameters(), lr=1.0, measure_first=True, state_dtype="8bit")
gradient_release(model, optimizer)

losses = []
for _ in range(200):
    chosen = torch.randint(len(x), (64,))
    loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
    loss.backward()  # the parameters are updated when this returns
    optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f}")
