"""timm's factory: after one registration, `create_optimizer_v2(model, opt="sgdsai")` makes an SGDSaI.

Without timm, SGDSaI and `param_groups` do the same.

    python examples/timm_registry.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from sgd_sai import SGDSaI, param_groups


def create_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Use timm's registry if timm is installed. Either way, biases and norms get no decay."""
    try:
        from timm.optim import OptimInfo, create_optimizer_v2
        from timm.optim._optim_factory import default_registry
    except ModuleNotFoundError:
        print("without timm")
        return SGDSaI(param_groups(model, weight_decay=weight_decay), lr=lr)
    default_registry.register(
        OptimInfo("sgdsai", SGDSaI, "SGD with momentum, scaled at initialisation", has_momentum=True)
    )
    return create_optimizer_v2(model, opt="sgdsai", lr=lr, weight_decay=weight_decay, momentum=0.9)


torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
x, y = torch.tensor(images).float().div(16).view(-1, 1, 8, 8), torch.tensor(digits)
model = nn.Sequential(nn.Conv2d(1, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
optimizer = create_optimizer(model, lr=1.0, weight_decay=1e-4)
print(
    f"{type(optimizer).__name__}, weight_decay", [group["weight_decay"] for group in optimizer.param_groups]
)

losses = []
for _ in range(200):
    chosen = torch.randint(len(x), (64,))
    loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f}")
