"""The optimizers that are compared, one entry of `OPTIMIZERS` each.

Weight decay is one rule for all: a task fixes κ, the fraction by which a step at the peak learning rate
shrinks a decayed weight, and every optimizer gets the λ that gives it. A learning-rate grid then searches
learning rates alone, on the same regularisation for everyone. Two differ: Prodigy multiplies λ by a step size
that it finds itself, and schedule-free AdamW decays one of its two sequences, by κ.

torch's optimizers are its fastest, the fused ones: step times are compared too.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgd_sai.distributed.layout import is_spread, local
from sgd_sai.lab.muon import MuonAdamW
from sgd_sai.optimizer import SGDSaI

_MOMENTUM = 0.9  # of SGD and SGD-SaI
_BETAS = (0.9, 0.95)  # of those of Adam's family
_RELEASE = Path(".peers", "sgd_sai", "__init__.py")  # in the current folder, or beside src/

#: (model, lr η, shrink κ) → optimizer.
Factory = Callable[[nn.Module, float, float], Optimizer]


@dataclass(frozen=True)
class Entry:
    """An optimizer as the lab knows it.

    Attributes:
        name: what the command line and the records call it.
        label: what the report calls it.
        colour: of its curves, as (light page, dark page).
        start: the learning rate in the middle of its first tuning grid.
        build: the factory.
        package: what must be installed for it, beyond the lab's own needs.
        extra: which of this package's extras does.
        tuned_as: whose tuned learning rate it takes; None: its own.
        constant: whether its learning rate stays at the peak after warm-up.
        sharded: whether it is right on parameters of which each rank has a part.
    """

    name: str
    label: str
    colour: tuple[str, str]
    start: float
    build: Factory
    package: str | None = None
    extra: str = "study"
    tuned_as: str | None = None
    constant: bool = False
    sharded: bool = True


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters in two groups: tensors of fewer than two dimensions are not decayed."""
    params = [param for param in model.parameters() if param.requires_grad]
    sorted_out: list[dict[str, Any]] = [
        {"params": [param for param in params if param.dim() >= 2]},
        {"params": [param for param in params if param.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in sorted_out if group["params"]]


def _sgd_sai(model: nn.Module, lr: float, shrink: float, **options: Any) -> Optimizer:
    return SGDSaI(groups(model), lr=lr, momentum=_MOMENTUM, weight_decay=shrink / lr, **options)


def _adamw(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    return torch.optim.AdamW(groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr, fused=True)


def _adam(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """Its decay enters the gradient, and is divided by √v like it: no λ gives κ. It gets none."""
    undecayed = [{**group, "weight_decay": 0.0} for group in groups(model)]
    return torch.optim.Adam(undecayed, lr=lr, betas=_BETAS, fused=True)


def _sgd(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    # Its decay enters the gradient, and momentum sums 1/(1 − μ) gradients.
    decay = shrink / lr * (1 - _MOMENTUM)
    fused = not any(map(is_spread, model.parameters()))  # which torch's kernel cannot take
    return torch.optim.SGD(groups(model), lr=lr, momentum=_MOMENTUM, weight_decay=decay, fused=fused)


def _muon(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    return MuonAdamW(model, groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr)


def _adam_mini(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """It sorts parameters by name. A tensor whose shape does not fit what its name means to it is one block.

    That is its rule for names that it does not know. It wants (out, in) for a rate per neuron or head;
    GPT-2's Conv1D is (in, out), so there the rows that share a rate are inputs.
    """
    import adam_mini

    config = getattr(model, "config", None)
    width, heads = getattr(config, "hidden_size", 1), getattr(config, "num_attention_heads", 1)
    by_name = []
    for index, (name, param) in enumerate(model.named_parameters()):
        fits = param.dim() == 2 and param.numel() % (width * width // heads) == 0
        by_name.append((name if fits or name.endswith("bias") else f"block.{index}", param))
    optimizer: Optimizer = adam_mini.Adam_mini(
        by_name, lr=lr, betas=_BETAS, weight_decay=shrink / lr, dim=width, n_heads=heads, verbose=False
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = shrink / lr if group["params"][0].dim() >= 2 else 0.0
    return optimizer


def _prodigy(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    import prodigyopt

    # Corrected and guarded as its authors advise under warm-up. One λ for all: it wants equal groups.
    params = [param for param in model.parameters() if param.requires_grad]
    with redirect_stdout(None):  # it announces its options
        optimizer: Optimizer = prodigyopt.Prodigy(
            params, lr=lr, weight_decay=shrink / lr, use_bias_correction=True, safeguard_warmup=True
        )
    return optimizer


def _schedule_free(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    import schedulefree

    optimizer: Optimizer = schedulefree.AdamWScheduleFree(
        groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr
    )
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _lion(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    import optimi

    optimizer: Optimizer = optimi.Lion(groups(model), lr=lr, weight_decay=shrink / lr)
    return optimizer


def _bitsandbytes(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    import bitsandbytes

    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(
        groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr
    )
    return optimizer


def _torchao(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """It wants its learning rate as a tensor, which the lab's is not, and compiles its step.

    On the CPU it steps eagerly: compiling would need a C++ compiler, and time for each shape.
    """
    from torchao.optim import AdamW8bit

    class Stepping(AdamW8bit):  # type: ignore[misc]
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

    optimizer = Stepping(groups(model), lr=lr, betas=_BETAS, weight_decay=shrink / lr)
    optimizer.plain()
    return optimizer


def _release(model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """The authors' own. It measures again after a restart, so that its runs do not resume exactly."""
    optimizer: Optimizer = _load_release().SGD_sai(
        groups(model), lr=lr, momentum=_MOMENTUM, weight_decay=shrink / lr
    )
    return optimizer


def _release_file() -> Path | None:
    roots = (Path.cwd(), Path(__file__).parents[3])
    return next((root / _RELEASE for root in roots if (root / _RELEASE).is_file()), None)


def _load_release() -> ModuleType:
    """Release 1.0.3 under another name: its import package is called like ours."""
    name, file = "sgd_sai_release_1_0_3", _release_file()
    if name not in sys.modules:
        assert file is not None  # check_installed has seen it
        spec = importlib.util.spec_from_file_location(
            name, file, submodule_search_locations=[str(file.parent)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _ours(**options: Any) -> Factory:
    return partial(_sgd_sai, **options)


_BF16, _8BIT = _ours(state_dtype=torch.bfloat16), _ours(state_dtype="8bit")
OPTIMIZERS = {
    entry.name: entry
    for entry in (
        Entry("sgd-sai", "SGD-SaI", ("#c2410c", "#fb923c"), 1.0, _sgd_sai),
        Entry("adamw", "AdamW", ("#1d4ed8", "#7aa2f7"), 1e-3, _adamw),
        Entry("sgd", "SGD with momentum", ("#4d7c0f", "#a3c76d"), 0.1, _sgd),
        Entry("adam-mini", "Adam-mini", ("#7e22ce", "#c084fc"), 1e-3, _adam_mini, package="adam_mini"),
        Entry("adam", "Adam without decay", ("#0369a1", "#38bdf8"), 1e-3, _adam),
        Entry("muon", "Muon, AdamW", ("#0f766e", "#2dd4bf"), 1e-3, _muon, sharded=False),
        Entry("prodigy", "Prodigy", ("#a16207", "#facc15"), 1.0, _prodigy, package="prodigyopt"),
        Entry(
            "schedule-free",
            "Schedule-free AdamW",
            ("#4338ca", "#a5b4fc"),
            3.16e-3,
            _schedule_free,
            package="schedulefree",
            constant=True,
        ),
        Entry("lion", "Lion", ("#be185d", "#f472b6"), 1e-4, _lion, package="optimi"),
        Entry(
            "adamw-8bit",
            "AdamW, 8 bit (bitsandbytes)",
            ("#1e3a8a", "#93c5fd"),
            1e-3,
            _bitsandbytes,
            package="bitsandbytes",
            extra="8bit",
            tuned_as="adamw",
            sharded=False,
        ),
        Entry(
            "adamw-8bit-torchao",
            "AdamW, 8 bit (torchao)",
            ("#155e75", "#67e8f9"),
            1e-3,
            _torchao,
            package="torchao",
            extra="8bit",
            tuned_as="adamw",
        ),
        Entry("sgd-sai-sqrt-d", "SGD-SaI, √d", ("#9a3412", "#fdba74"), 1.0, _ours(scale="sqrt_d")),
        Entry("sgd-sai-raw", "SGD-SaI, raw G", ("#b91c1c", "#f87171"), 3.16e-3, _ours(normalize=False)),
        Entry(
            "sgd-sai-raw-sqrt-d",
            "SGD-SaI, raw √d",
            ("#881337", "#fda4af"),
            3.16e-3,
            _ours(scale="sqrt_d", normalize=False),
        ),
        Entry("sgd-sai-rms", "SGD-SaI, rms", ("#78350f", "#d6a46c"), 1e-3, _ours(normalize="rms")),
        Entry("sgd-sai-bf16", "SGD-SaI, bf16", ("#ea580c", "#fed7aa"), 1.0, _BF16, tuned_as="sgd-sai"),
        Entry(
            "sgd-sai-8bit",
            "SGD-SaI, 8 bit",
            ("#dc7a4a", "#ffedd5"),
            1.0,
            _8BIT,
            tuned_as="sgd-sai",
            sharded=False,
        ),
        Entry(
            "release",
            "Release 1.0.3",
            ("#57534e", "#d6d3d1"),
            3.16e-3,
            _release,
            package="release 1.0.3",
            sharded=False,
        ),
    )
}

#: Compared unless others are named.
DEFAULT = ("sgd-sai", "adamw", "sgd")


def check_installed(names: Iterable[str]) -> None:
    """ValueError, one line, for the first optimizer whose package is missing."""
    for name in names:
        package = OPTIMIZERS[name].package
        if name == "release":
            if _release_file() is None:
                raise ValueError(
                    "release needs the authors' release in .peers/: "
                    "pip install --no-deps --target .peers sgd-sai==1.0.3"
                )
        elif name == "muon" and not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f"muon needs torch.optim.Muon, of torch 2.9 or later; this is {torch.__version__}"
            )
        elif package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{name} needs the package {package!r}: pip install 'sgd-sai[{OPTIMIZERS[name].extra}]'"
            )


def build(name: str, model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """The optimizer `name` for `model`, with peak learning rate η = `lr` and decay κ = `shrink`."""
    return OPTIMIZERS[name].build(model, lr, shrink)


@contextmanager
def evaluated_weights(optimizer: Optimizer) -> Iterator[None]:
    """Put into the model what the optimizer calls its result: of a schedule-free one, its average."""
    if not hasattr(optimizer, "eval"):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state as it is: its tensors, each once, and 8 for each plain number."""
    tensors, numbers = {}, 0
    for entries in optimizer.state.values():
        for value in entries.values():
            if isinstance(value, Tensor):
                tensors.update(_stored(value))
            else:
                numbers += 1
    return sum(tensors.values()) + 8 * numbers


def _stored(tensor: Tensor) -> dict[int, int]:
    """{address: bytes} of what is here of a tensor; one made of others, as 8-bit ones are, is these."""
    tensor = local(tensor)
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return {at: size for name in names for at, size in _stored(getattr(tensor, name)).items()}
    return {tensor.data_ptr(): tensor.numel() * tensor.element_size()}
