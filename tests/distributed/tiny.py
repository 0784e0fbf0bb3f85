"""A transformer with everything that sharding makes awkward, its data, and its training in one process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode

from sgd_sai import SGDSaI
from sgd_sai.quantized import Momentum8

STEPS = 20
BATCH = 8
VOCABULARY = 37  # rows that 2 and 4 ranks share unevenly
OPTIONS: dict[str, Any] = {"lr": 0.5, "weight_decay": 1e-3}
LATE = 3  # the step at which the late layer is first used


class Block(nn.Module):
    """Attention without biases (a key's has gradient 0 but for rounding) and an MLP with them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Tiny(nn.Module):
    """Tied embeddings, biases, a gain of one element (on 4 ranks: 3 empty shards), a layer used late."""

    def __init__(self, gain: tuple[int, ...] = (1,), width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.late = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.gain = nn.Parameter(torch.ones(gain))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, late: bool) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        if late:
            x = x + self.late(x)
        return self.head(self.norm(x) * self.gain)


def batch(step: int) -> Tensor:
    """The global batch of a step: (8, 13) tokens that can be learned."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(VOCABULARY, (BATCH, 1), generator=generator)
    return (start + torch.arange(13) ** 2) % VOCABULARY


def loss_of(model: Callable[[Tensor, bool], Tensor], tokens: Tensor, step: int) -> Tensor:
    logits = model(tokens[:, :-1], step >= LATE)
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train(
    model: nn.Module,
    optimizer: Any,
    steps: Iterable[int] = range(STEPS),
    share: slice = slice(None),
    after_backward: Callable[[], None] = lambda: None,
) -> None:
    """Train on this rank's share of each global batch."""
    for step in steps:
        loss_of(model, batch(step)[share], step).backward()
        after_backward()
        quiet_step(optimizer)
        optimizer.zero_grad()


def quiet_step(optimizer: Any) -> None:
    """A step without the warning of blocks that are still unlatched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        optimizer.step()


class Counting:
    """An optimizer that notes the collectives of each of its steps."""

    def __init__(self, optimizer: SGDSaI) -> None:
        self.optimizer, self.collectives = optimizer, []
        self.zero_grad = optimizer.zero_grad

    def step(self) -> None:
        with CommDebugMode() as collectives:
            self.optimizer.step()
        self.collectives.append(collectives.get_total_counts())


def whole(tensor: Tensor) -> Tensor:
    """A plain copy of a tensor, sharded or not; every rank must ask."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def outcome(model: nn.Module, optimizer: SGDSaI) -> dict[str, Any]:
    """What every way to train must agree on."""
    named = [(name.removeprefix("module."), p) for name, p in model.named_parameters()]
    return {
        "gsnr": {name: optimizer.state[p]["gsnr"] for name, p in named if p in optimizer.state},
        "gsnr_max": optimizer.param_groups[0]["gsnr_max"],
        "params": {name: whole(p) for name, p in named},
        "momenta": {name: momentum_of(optimizer.state[p]) for name, p in named if p in optimizer.state},
    }


def momentum_of(state: dict[str, Any]) -> Tensor:
    """The momentum of a parameter, whole; one in 8 bits as the numbers that it stands for."""
    momentum = whole(state["momentum_buffer"])
    if momentum.dtype != torch.int8:
        return momentum
    return Momentum8(momentum, whole(state["momentum_absmax"])).read()


def one_process(gain: tuple[int, ...] = (1,), steps: int = STEPS, **options: Any) -> dict[str, Any]:
    """The truth: the same training in one process."""
    model = Tiny(gain)
    optimizer = SGDSaI(model.parameters(), **{**OPTIONS, **options})
    train(model, optimizer, range(steps))
    return outcome(model, optimizer)


def assert_same_outcome(
    found: dict[str, Any],
    truth: dict[str, Any],
    params: float = 1e-5,
    momenta: float = 1e-5,
    gsnr: float = 1e-6,
) -> None:
    """g-SNR to 1e-6 relative, parameters and momenta after 20 steps to 1e-5 of their norm, if not given."""
    assert found["gsnr"].keys() == truth["gsnr"].keys()
    for name, raw in truth["gsnr"].items():
        assert abs(found["gsnr"][name] - raw) <= gsnr * abs(raw), (name, found["gsnr"][name], raw)
    assert abs(found["gsnr_max"] - truth["gsnr_max"]) <= gsnr * truth["gsnr_max"]
    for kind, allowed in (("params", params), ("momenta", momenta)):
        for name, tensor in truth[kind].items():
            off = (found[kind][name] - tensor).norm() / tensor.norm()
            assert off <= allowed, (kind, name, off)
