"""LoRA with peft: a GPT-2 trained on English is frozen, and its adapters learn to write in capitals.

LoRA starts with B = 0, so the first gradient of every A is exactly zero. SGDSaI warns about these blocks,
gives each its scale at its first non-zero gradient, and then trains it.

    python examples/peft_lora.py
"""

from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from sgd_sai import SGDSaI, param_groups

CONTEXT = 32


def train(model: nn.Module, text: str, lr: float, steps: int) -> list[float]:
    """Train the parameters that require a gradient and return the losses."""
    tokens = torch.tensor(list(text.encode()))
    optimizer = SGDSaI(param_groups(model), lr=lr)  # leaves out the frozen parameters
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(tokens) - CONTEXT, (16, 1))
        batch = tokens[starts + torch.arange(CONTEXT)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


torch.manual_seed(0)
config = GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=2, use_cache=False)
model = GPT2LMHeadModel(config)
english = "\n".join(topics.values())  # Python's own documentation
train(model, english, lr=2.0, steps=150)  # in place of pretrained weights

adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
losses = train(get_peft_model(model, adapters), english.upper(), lr=4.0, steps=80)
print(f"loss {losses[0]:.2f} -> {sum(losses[-10:]) / 10:.2f}")
