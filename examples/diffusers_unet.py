"""Diffusion with diffusers: a tiny UNet learns to remove noise from handwritten digits.

python examples/diffusers_unet.py
"""

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from sklearn.datasets import load_digits
from torch import nn

from sgd_sai import SGDSaI

STEPS = 100

torch.manual_seed(0)
images = torch.tensor(load_digits().images).float().div(8).sub(1).unsqueeze(1)  # (1797, 1, 8, 8) in [−1, 1]
model = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(16, 32),
    norm_num_groups=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
noising = DDPMScheduler(num_train_timesteps=1000)
optimizer = SGDSaI(model.parameters(), lr=4.0)
schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=STEPS)

losses = []
for _ in range(STEPS):
    clean = images[torch.randint(len(images), (16,))]
    noise = torch.randn_like(clean)
    times = torch.randint(noising.config.num_train_timesteps, (len(clean),))
    predicted = model(noising.add_noise(clean, noise, times), times).sample
    loss = nn.functional.mse_loss(predicted, noise)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f}")
