"""How the peers are built: from a model, for the lab to train, or from a list of parameters, to be timed.

Weight decay is one rule for all that are trained: a task fixes κ, the fraction by which a step at the peak
learning rate shrinks a decayed weight, and every optimizer gets the λ that gives it. A learning-rate grid
then searches learning rates alone, on the same regularisation for everyone. Two differ: Prodigy multiplies λ
by a step size that it finds itself, and schedule-free AdamW decays one of its two sequences, by κ.

torch's optimizers are its fastest, the fused ones: step times are compared too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgd_sai.distributed.layout import is_spread
from sgd_sai.optimizer import SGDSaI
from sgd_sai.peers import release
from sgd_sai.peers.imports import from_package, import_peer
from sgd_sai.peers.muon import MuonAdamW
from sgd_sai.peers.parameter import HEAD_NUMEL, attention, head_numel
from sgd_sai.peers.state_bytes import HEADS

#: (model, lr η, shrink κ) → optimizer.
Train = Callable[[nn.Module, float, float], Optimizer]
#: (parameters, lr=η) → optimizer.
Plain = Callable[..., Optimizer]

_MOMENTUM = 0.9  # of SGD and SGD-SaI
_BETAS = (0.9, 0.95)  # of those of Adam's family


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters in two groups: tensors of fewer than two dimensions are not decayed."""
    params = [param for param in model.parameters() if param.requires_grad]
    sorted_out: list[dict[str, Any]] = [
        {"params": [param for param in params if param.dim() >= 2]},
        {"params": [param for param in params if param.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in sorted_out if group["params"]]


def sgd_sai(**options: Any) -> Train:
    """SGD-SaI with `options`."""

    def train(model: nn.Module, lr: float, shrink: float) -> Optimizer:
        return SGDSaI(groups(model), lr=lr, momentum=_MOMENTUM, weight_decay=shrink / lr, **options)

    return train


def adamw(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """torch's AdamW."""
    return torch.optim.AdamW(groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr, fused=True)


def adam(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """torch's Adam. Decay would enter the gradient and be divided by √v: no λ gives κ, so it gets none."""
    undecayed = [{**group, "weight_decay": 0.0} for group in groups(model)]
    return torch.optim.Adam(undecayed, lr=lr, betas=_BETAS, fused=True)


def sgd(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """torch's SGD with momentum. Its decay enters the gradient, and momentum sums 1/(1 − μ) gradients."""
    decay = shrink / lr * (1 - _MOMENTUM)
    fused = not any(map(is_spread, model.parameters()))  # which torch's kernel cannot take
    return torch.optim.SGD(groups(model), lr=lr, momentum=_MOMENTUM, weight_decay=decay, fused=fused)


def muon(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """torch's Muon for matrices, its AdamW for the rest."""
    return MuonAdamW(model, groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr)


def muon_matrices(params: Sequence[Tensor], lr: float) -> Optimizer:
    """torch's Muon on the matrices alone; one as large as an embedding is not among them."""
    return torch.optim.Muon([p for p in params if p.dim() == 2 and p.numel() < 2**25], lr=lr)


def adam_mini(
    named: Iterable[tuple[str, Tensor]], model: nn.Module | None = None, **options: Any
) -> Optimizer:
    """Adam-mini, which sorts parameters by name.

    A tensor whose shape does not fit what its name means to it is one block, as under a name that it does
    not know. It wants (out, in) for a rate per neuron or head; GPT-2's Conv1D is (in, out), so there the rows
    that share a rate are inputs.

    Args:
        named: (name, parameter) pairs.
        model: its configuration says the hidden size and the number of heads; else they are Adam-mini's own.
        options: `lr`, `betas`, `weight_decay`.
    """
    found = None if model is None else attention(model)
    head = HEAD_NUMEL if model is None else head_numel(model)
    if found is not None:
        options |= dict(zip(("dim", "n_heads"), found, strict=True))
    by_name = []
    for index, (name, param) in enumerate(named):
        by_head = found is not None or any(word in name.lower() for word in HEADS)
        fits = param.dim() == 2 and (not by_head or param.numel() % head == 0)
        by_name.append((name if fits or name.endswith("bias") else f"block.{index}", param))
    return from_package("adam_mini", "Adam_mini")(by_name, verbose=False, **options)


def adam_mini_decayed(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """Adam-mini, which decays what the others decay."""
    optimizer = adam_mini(
        model.named_parameters(), model=model, lr=lr, betas=_BETAS, weight_decay=shrink / lr
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = shrink / lr if group["params"][0].dim() >= 2 else 0.0
    return optimizer


def adam_mini_plain(params: Sequence[Tensor], lr: float, weight_decay: float) -> Optimizer:
    """Adam-mini, for which each tensor is one block."""
    named = [(f"layer.{i}.weight", param) for i, param in enumerate(params)]
    return adam_mini(named, lr=lr, weight_decay=weight_decay)


def prodigy(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """Prodigy, corrected and guarded as its authors advise under warm-up; one λ: it wants equal groups."""
    params = [param for param in model.parameters() if param.requires_grad]
    make = from_package("prodigyopt", "Prodigy")
    return make(params, lr=lr, weight_decay=shrink / lr, use_bias_correction=True, safeguard_warmup=True)


def schedule_free(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """Schedule-free AdamW, ready to train."""
    make = from_package("schedulefree", "AdamWScheduleFree")
    optimizer = make(groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def lion(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """optimi's Lion."""
    return from_package("optimi", "Lion")(groups(model), lr=lr, weight_decay=shrink / lr)


def bitsandbytes(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """bitsandbytes' AdamW with an 8-bit state."""
    make = from_package("bitsandbytes.optim", "AdamW8bit")
    return make(groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr)


def torchao(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """torchao's AdamW with an 8-bit state. It wants its learning rate as a tensor, and compiles its step.

    The lab's learning rate is a number. On the CPU it steps eagerly: compiling would need a C++ compiler, and
    time for each shape.
    """

    class Stepping(import_peer("torchao.optim").AdamW8bit):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            on_cuda = any(param.is_cuda for group in self.param_groups for param in group["params"])
            for group in self.param_groups:
                group["lr"] = torch.tensor(group["lr"])
            with torch.compiler.set_stance("default" if on_cuda else "force_eager"):
                loss = super().step(closure)
            self.plain()
            return loss

        def plain(self) -> None:
            for group in self.param_groups:
                group["lr"] = float(group["lr"])

    optimizer: Optimizer = Stepping(groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr)
    optimizer.plain()  # type: ignore[attr-defined]
    return optimizer


def release_1_0_3(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """The authors' own. It measures again after a restart, so that its runs do not resume exactly."""
    return release.build(groups(model), lr=lr, momentum=_MOMENTUM, weight_decay=shrink / lr)


def flash(name: str, **options: Any) -> Plain:
    """An optimizer of flashoptim, which keeps 24 bits of each weight of 16."""
    build = from_package("flashoptim", name)

    def plain(params: list[Tensor], lr: float) -> Optimizer:
        bits = 24 if any(param.dtype.itemsize == 2 for param in params) else None
        return build(params, lr=lr, weight_decay=0.1, master_weight_bits=bits, **options)

    return plain
