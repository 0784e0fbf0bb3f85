"""A plain PyTorch loop: a small convolutional network learns scikit-learn's handwritten digits.

python examples/pytorch_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sgd_sai import SGDSaI, param_groups

EPOCHS = 6

torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images).float().div(16).view(-1, 1, 8, 8), torch.tensor(digits))
loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1, stride=2),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(64 * 16, 10),
)

# Decay for matrices and kernels, none for biases.
optimizer = SGDSaI(param_groups(model, weight_decay=1e-4), lr=1.0)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))

losses = []
for _ in range(EPOCHS):
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # the first one measures g-SNR and freezes each block's scale
        scheduler.step()
        losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f}")
