"""SGD with momentum and one constant a block, whatever it comes from: the family of `docs/beyond.md`.

    m₁ = g₁;  m_t = μ m_{t−1} + (1 − μ) g_t;   θ ← θ − λ η θ;   θ ← θ − η cᵢ/N mᵢ

N makes the first update as large as AdamW's at the same η (`sgd_sai.gsnr.rms_normalizer`), so that learning
rates of all methods are in one unit. The tensor that holds query, key and value in one is three blocks here,
along whichever dimension: `SGDSaI` cuts along the first alone, so these experiments have an optimizer of
their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.beyond_the_paper import results
from sgd_sai.gsnr import Moments, g_snr, measure, rms_normalizer
from sgd_sai.lab.runs import runner
from sgd_sai.lab.tasks import Problem, Task
from sgd_sai.peers.builders import groups

#: Kinds of tensors of two or more dimensions, in the order in which their patterns are tried.
KINDS = (
    ("token embedding", r"wte"),
    ("positions", r"wpe|position_embeddings|cls_token"),
    ("query", r"q_proj|query|to_q"),
    ("key", r"k_proj|key|to_k"),
    ("value", r"v_proj|value|to_v"),
    ("query, key and value", r"c_attn"),
    ("attention output", r"attn\.c_proj|o_proj|to_out"),
    ("MLP, first", r"c_fc|fc1"),
    ("MLP, second", r"mlp\.c_proj|fc2"),
    ("first layer", r"patch_embeddings|embedder\.embedder"),
    ("head", r"classifier"),
    ("shortcut", r"shortcut"),
    ("convolution", r"convolution|conv\d"),
)
_PARTS = ("query", "key", "value")
DIVERGED = 20.0  # nats of training loss


@dataclass(frozen=True)
class Block:
    """A parameter, or one of the three parts of a fused query, key and value, or a row."""

    name: str
    param: Tensor
    part: int | None = None
    row: int | None = None

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is; LoRA's A and B are kinds of their own, for each kind of what they adapt."""
        if self.param.dim() < 2:
            return "norms and biases"
        kind = next(kind for kind, pattern in KINDS if re.search(pattern, self.name))
        adapter = re.search(r"lora_([AB])", self.name)
        return f"{adapter[1]} of {kind}" if adapter else kind

    def of(self, tensor: Tensor) -> Tensor:
        """The block's view of its parameter, or of a tensor like it."""
        if self.row is not None:
            return tensor[self.row]
        if self.part is None:
            return tensor
        return tensor.chunk(3, dim=0 if "lora_B" in self.name else -1)[self.part]


def blocks(model: nn.Module, rows: bool = False) -> list[Block]:
    """The trained blocks of a model; `rows`: every row of a token embedding is one."""
    found = []
    for name, param in model.named_parameters():
        if param.requires_grad and rows and "wte" in name:
            found += [Block(f"{name}.{row}", param, row=row) for row in range(len(param))]
        elif param.requires_grad:
            fused = "c_attn" in name and "lora_A" not in name and param.dim() == 2
            found += (
                [Block(f"{name}.{part}", param, i) for i, part in enumerate(_PARTS)]
                if fused
                else [Block(name, param)]
            )
    return found


#: (block, moments of its first gradient that is not zero) → its constant.
Rule = Callable[[Block, Moments], float]


def rms(of_block: Moments) -> float:
    """Root of the mean square of a gradient."""
    return of_block.norm / math.sqrt(of_block.n)


class Scaled(Optimizer):
    """Momentum and decoupled decay; how far each element then moves is a subclass's."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float, shrink: float) -> None:
        """κ = `shrink` is what a step at the peak rate `lr` takes off a decayed weight."""
        super().__init__(params, {"lr": lr})
        self.momentum, self.kappa, self.peak = momentum, shrink, lr

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every parameter; all have gradients."""
        lr = self.param_groups[0]["lr"]
        for param in self.param_groups[0]["params"]:
            state = self.state[param]
            if not state:
                state["momentum_buffer"] = param.grad.clone()
            else:
                state["momentum_buffer"].lerp_(param.grad, 1 - self.momentum)
            if param.dim() >= 2:
                param.mul_(1 - self.kappa * lr / self.peak)
        self.move(lr)

    def move(self, lr: float) -> None:
        """Take the scaled momentum off the parameters."""
        raise NotImplementedError


class Blockwise(Scaled):
    """Momentum with one constant a block, each found at the block's first gradient that is not zero.

    As in `SGDSaI`, one that is found later gets no more than the largest of the first, unless it is given.
    """

    def __init__(
        self, of: list[Block], rule: Rule, lr: float, momentum: float, shrink: float, given: bool = False
    ) -> None:
        """`given`: the constants do not depend on gradients. The rest as for `Scaled`."""
        super().__init__([block.param for block in of], lr, momentum, shrink)
        self.blocks, self.rule = of, rule
        self.scales: dict[str, float] = {}
        self.largest = math.inf if given else 0.0
        self.normalizer = 0.0

    def move(self, lr: float) -> None:
        """By each block's scale, those included that are found now."""
        self.measure()
        for block in self.blocks:
            if block.name in self.scales:
                momentum = block.of(self.state[block.param]["momentum_buffer"])
                block.of(block.param).sub_(momentum, alpha=lr * self.scales[block.name])

    def measure(self) -> None:
        """Find the scales cᵢ/N of the blocks that have none and now meet a gradient."""
        waiting = [block for block in self.blocks if block.name not in self.scales]
        moments = measure([[block.of(block.param.grad)] for block in waiting])
        met = [(block, of) for block, of in zip(waiting, moments, strict=True) if of.measurable]
        if not met:
            return
        found = [self.rule(block, of) for block, of in met]
        if not self.normalizer:
            self.normalizer = rms_normalizer(found, [of for _, of in met])
            self.largest = max(self.largest, *found)
        for (block, _), c in zip(met, found, strict=True):
            self.scales[block.name] = min(c, self.largest) / self.normalizer


class Adaptive(Blockwise):
    """One number a block that is no constant: 1/√v, where v is a running mean of the block's mean square."""

    def __init__(self, of: list[Block], lr: float, momentum: float, beta2: float, shrink: float) -> None:
        """As `Blockwise`; v forgets as AdamW's does, with β₂."""
        super().__init__(of, lambda block, of: 1.0, lr, momentum, shrink)
        self.beta2, self.seen = beta2, dict.fromkeys((block.name for block in of), 0)
        self.v = dict.fromkeys(self.seen, 0.0)

    def measure(self) -> None:
        """Bring v up to date."""
        for block, of in zip(self.blocks, measure([[b.of(b.param.grad)] for b in self.blocks]), strict=True):
            if of.measurable:
                name = block.name
                self.seen[name] += 1
                self.v[name] = self.beta2 * self.v[name] + (1 - self.beta2) * of.total_sq / of.n
                self.scales[name] = math.sqrt((1 - self.beta2 ** self.seen[name]) / self.v[name])


class Elementwise(Scaled):
    """Momentum with one constant an element: 1 over the rms of its gradient in AdamW's own run."""

    def __init__(self, scales: dict[Tensor, Tensor], lr: float, momentum: float, shrink: float) -> None:
        """`scales` are those of the parameters; the rest as for `Scaled`."""
        super().__init__(list(scales), lr, momentum, shrink)
        self.scales = scales

    def move(self, lr: float) -> None:
        """By each element's scale."""
        for param, scale in self.scales.items():
            param.addcmul_(self.state[param]["momentum_buffer"], scale, value=-lr)


@cache
def elements_along_adamw(task: Task, seed: int, steps: int) -> list[Tensor]:
    """1/√(mean of g²) of every element, over a run of AdamW at the best point of its search; 0 without g."""
    sums: list[Tensor] = []

    def add(step: int, model: nn.Module, optimizer: Optimizer) -> None:
        grads = [param.grad for param in model.parameters() if param.requires_grad]
        squares = torch._foreach_mul(grads, grads)
        if sums:
            torch._foreach_add_(sums, squares)
        else:
            sums.extend(squares)

    trial = results.best(results.trials(task.name, "adamw"))
    problem = runner.load(task.name, None)
    train(task, problem, "adamw", trial["point"], seed=seed, steps=steps, watch=add)
    return [torch.where(total > 0, (total / steps).rsqrt(), 0.0) for total in sums]


def _by_kind(point: Mapping[str, float]) -> Rule:
    return lambda block, _: point[f"c of {block.kind}"]


def _powers(point: Mapping[str, float]) -> Rule:
    return lambda block, of: (
        rms(of) ** -point["power of rms(g)"]
        * of.n ** point["power of d"]
        * (point["c of vectors"] if block.param.dim() < 2 else 1.0)
    )


def _hindsight(task: str) -> Rule:
    along: dict[str, float] = {}
    for row in results.measured(task):
        along |= zip(row["blocks"], row["along"], strict=True)
    return lambda block, _: 1 / along[block.name]


#: Method → what its constants come from, given the point of its search and the task.
RULES: dict[str, Callable[[Mapping[str, float], str], Rule]] = {
    "sgd": lambda point, task: lambda block, of: 1.0,
    "sgd-sai": lambda point, task: lambda block, of: g_snr(of),
    "rms": lambda point, task: lambda block, of: rms(of) ** -0.5,
    "constants": lambda point, task: _by_kind(point),
    "powers": lambda point, task: _powers(point),
    "settled": lambda point, task: lambda block, of: rms(of) ** -0.75 * of.n**-0.125,  # as "powers" ended
    "rms-rows": lambda point, task: lambda block, of: rms(of) ** -0.5,
    "hindsight": lambda point, task: _hindsight(task),
}
METHODS = ("adamw", "adaptive", "adaptive-rows", "elements", *RULES)


def build(method: str, model: nn.Module, point: Mapping[str, float], task: Task) -> Optimizer:
    """The optimizer of a method at a point of its search."""
    lr, shrink = point["lr"], task.shrink
    if method == "adamw":
        betas = (1 - point["1 - beta1"], 1 - point["1 - beta2"])
        return torch.optim.AdamW(groups(model), lr=lr, betas=betas, weight_decay=shrink / lr, fused=True)
    found = blocks(model, rows=method.endswith("rows"))
    if method.startswith("adaptive"):
        return Adaptive(found, lr, 1 - point["1 - mu"], 1 - point["1 - beta2"], shrink)
    rule, given = RULES[method](point, task.name), method in ("constants", "hindsight")
    return Blockwise(found, rule, lr, 1 - point["1 - mu"], shrink, given)


def train(
    task: Task,
    problem: Problem,
    method: str,
    point: Mapping[str, float],
    *,
    seed: int,
    steps: int | None = None,
    watch: Callable[[int, nn.Module, Optimizer], None] | None = None,
) -> dict[str, Any]:
    """The held-out measurement after a run, or {"diverged": step}; `watch` sees every step's gradients."""
    steps = steps or task.steps
    scales = elements_along_adamw(task, seed, steps) if method == "elements" else []
    torch.manual_seed(seed)
    model = problem.model()
    model.train()
    if scales:
        trained = [param for param in model.parameters() if param.requires_grad]
        of_params = dict(zip(trained, scales, strict=True))
        optimizer: Optimizer = Elementwise(of_params, point["lr"], 1 - point["1 - mu"], task.shrink)
    else:
        optimizer = build(method, model, point, task)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = point["lr"] * task.schedule(step, steps)
        optimizer.zero_grad()
        loss = problem.loss(model, problem.batch(seed, step))
        loss.backward()  # type: ignore[no-untyped-call]
        if not loss.item() < DIVERGED:
            return {"diverged": step}
        if task.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        if watch is not None:
            watch(step, model, optimizer)
        optimizer.step()
    held_out = problem.evaluate(model)
    return held_out if math.isfinite(held_out["val_loss"]) else {"diverged": steps}


def kinds(model: nn.Module) -> Iterator[str]:
    """The kinds of a model's blocks, each once."""
    yield from dict.fromkeys(block.kind for block in blocks(model))
