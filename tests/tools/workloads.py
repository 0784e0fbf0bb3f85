"""Factories as a user writes them, good and bad, for the commands to load as `workloads:NAME`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def pairs(n: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 6, generator=generator), torch.randn(16, 2, generator=generator)) for _ in range(n)
    ]


def mse(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def plain() -> Any:
    """A module of one's own with a loss of one's own."""
    return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 2)), pairs(), mse


def gpt() -> Any:
    """A model of transformers that returns its loss."""
    import transformers

    config = transformers.GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    tokens = torch.arange(16).remainder(13).view(2, 8)
    return transformers.GPT2LMHeadModel(config), [{"input_ids": tokens, "labels": tokens}]


def sparse() -> Any:
    """An embedding with sparse gradients."""
    indices = torch.randint(10, (8,), generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Embedding(10, 6, sparse=True), nn.Linear(6, 2))
    return net, [(indices, torch.zeros(8, 2))], mse


def named() -> Any:
    """Names that a terminal or a page could take for something else, and long ones."""
    long = "a_layer_with_a_very_long_name_of_its_own_" * 2
    net = nn.ParameterDict({"w[red]": nn.Parameter(torch.ones(3, 3)), long: nn.Parameter(torch.ones(3))})
    return net, [torch.arange(1.0, 4.0)], lambda model, x: (model["w[red]"] @ x + model[long]).square().sum()


def plainly_called(name: str = "") -> Any:
    """One layer, whose parameters have this at the end of their names."""
    net = nn.ParameterDict(
        {f"weight{name}": nn.Parameter(torch.eye(3)), f"bias{name}": nn.Parameter(torch.ones(3))}
    )
    return net, [torch.arange(1.0, 4.0)], lambda model, x: sum((value @ x).sum() for value in model.values())


def hostile() -> Any:
    """The same, with names that steer a terminal and that are HTML."""
    return plainly_called('\x1b]0;title\x07\x1b[2J\u202e"><script>alert(1)</script><!--<script>')


def scalar() -> Any:
    """One number, whose update can be too small for any gain."""
    net = nn.ParameterDict({"a": nn.Parameter(torch.tensor(1.0))})
    return net, [torch.tensor(2.0)], lambda model, x: (model["a"] * x).square()


def flagged() -> Any:
    """A zero-initialised branch, a scalar, a block with NaN, and one with by far the largest G_snr."""
    net = nn.ParameterDict({
        "large": nn.Parameter(torch.randn(50, 50)),
        "vector": nn.Parameter(torch.randn(50)),
        "scalar": nn.Parameter(torch.tensor(1.0)),
        "unused": nn.Parameter(torch.randn(3)),
        "a": nn.Parameter(torch.randn(4)),
        "zero": nn.Parameter(torch.zeros(4)),
        "broken": nn.Parameter(torch.zeros(2)),
    })  # fmt: skip
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))

    def loss(model: nn.ParameterDict, batch: Tensor) -> Tensor:
        branch = (model["a"] * model["zero"]).sum()  # a's gradient is exactly zero
        return (model["large"] @ batch * model["vector"]).sum() * model["scalar"] + branch + (
            model["broken"].sqrt().sum() * 0.0
        )  # fmt: skip

    return net, [x], loss


def ends() -> Any:
    def once() -> Iterator[Any]:
        yield from pairs(2)

    return plain()[0], once(), mse


def fails() -> Any:
    raise FileNotFoundError("no such\nfile")


def not_a_pair() -> Any:
    return plain()[0]


def vector_loss() -> Any:
    return plain()[0], pairs(), lambda model, batch: model(batch[0])


def python_loss() -> Any:
    return plain()[0], pairs(), lambda model, batch: 1.0


def no_loss() -> Any:
    return gpt()[0], [{"input_ids": torch.zeros(1, 3, dtype=torch.long)}]


def no_gradients() -> Any:
    return plain()[0], pairs(), lambda model, batch: torch.ones((), requires_grad=True) * 2


def detached() -> Any:
    return plain()[0], pairs(), lambda model, batch: mse(model, batch).detach()


def zero_gradients() -> Any:
    return plain()[0], pairs(), lambda model, batch: 0.0 * mse(model, batch)


def frozen() -> Any:
    return plain()[0].requires_grad_(False), pairs(), mse


def wrong_shape() -> Any:
    return plain()[0], [(torch.randn(2, 5), torch.randn(2, 2))], mse


def no_batches() -> Any:
    return plain()[0], [], mse


nothing = 7
