"""torch.compile: the step is compiled once, even if the learning rate changes.

python examples/compiled_step.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from sgd_sai import SGDSaI

STEPS = 200

torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(digits)
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = SGDSaI(model.parameters(), lr=1.0)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
step = torch.compile(optimizer.step)

losses = []
for _ in range(STEPS):
    chosen = torch.randint(len(x), (64,))
    loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
    optimizer.zero_grad()
    loss.backward()
    step()
    scheduler.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f}")
