"""The optimizers that SGD-SaI is compared with, and SGD-SaI itself: one entry of `PEERS` each.

The lab trains them, `sgd-sai bench` times them, `sgd-sai memory` plans their bytes. A name means the same
optimizer everywhere. Packages of others are imported when an entry is built.

    builders      how each is built
    state_bytes   the bytes that each allocates, as formulas
    parameter     a parameter as these formulas see it
    imports       packages of others: whether they are there, and importing them without noise
    release       the authors' release 1.0.3
    muon          Muon with AdamW on the rest
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from functools import partial

import torch

from sgd_sai.optimizer import SGDSaI
from sgd_sai.peers import builders, release
from sgd_sai.peers import state_bytes as size
from sgd_sai.peers.builders import Plain, Train
from sgd_sai.peers.imports import Need, flashoptim, from_package, package, torch_muon
from sgd_sai.peers.parameter import Parameter
from sgd_sai.peers.state_bytes import Memory, each

__all__ = ["PEERS", "Peer", "Trained", "check_installed"]


@dataclass(frozen=True)
class Peer:
    """An optimizer.

    Attributes:
        name: what command lines and records call it.
        label: what tables and reports call it.
        needs: what it needs beyond torch, if anything.
        plain: builds it from a list of parameters, under the options that people use; None: it is not timed.
        by_default: whether it is timed unless others are named.
        memory: the bytes that it allocates; None: not known to the planner.
    """

    name: str
    label: str
    _: KW_ONLY
    needs: Need | None = None
    plain: Plain | None = None
    by_default: bool = True
    memory: Memory | None = None

    def missing(self) -> str | None:
        """None if it can be built here; else what it needs and how to get that."""
        return None if self.needs is None else self.needs()


@dataclass(frozen=True, kw_only=True)
class Trained(Peer):
    """An optimizer that the lab trains.

    Attributes:
        train: builds it from a model, with the lab's rule of weight decay.
        colour: of its curves, as (light page, dark page).
        start: the learning rate in the middle of its first tuning grid.
        tuned_as: whose tuned learning rate it takes; None: its own.
        constant: whether its learning rate stays at the peak after warm-up.
        sharded: whether it is right on parameters of which each rank has a part.
    """

    train: Train
    colour: tuple[str, str]
    start: float
    tuned_as: str | None = None
    constant: bool = False
    sharded: bool = True


def check_installed(names: Iterable[str]) -> None:
    """Check that each of the named peers can be built here.

    Raises:
        ValueError: one line, for the first one that cannot: what it needs and how to get it.
    """
    for name in names:
        missing = PEERS[name].missing()
        if missing is not None:
            raise ValueError(f"{name} needs {missing}")


_DECAY = 0.1  # of the plain ones, where nothing else is said


def _plain_sgd_sai(**options: object) -> Plain:
    return partial(SGDSaI, weight_decay=_DECAY, **options)  # type: ignore[arg-type]


def _sgd_sai_bytes(state: Callable[[Parameter], int], state_dtype: str) -> Memory:
    # A step of SGD-SaI works in pieces of bounded size: tens of MiB at most, whatever the model's.
    return Memory(each(state), size.nothing, state_dtype=state_dtype, choice_of="sgd-sai")


#: All of them by name. Bytes of torch.optim's are those of what it chooses itself on a GPU, which is foreach.
PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Trained(
            "sgd-sai",
            "SGD-SaI",
            train=builders.sgd_sai(),
            colour=("#c2410c", "#fb923c"),
            start=1.0,
            plain=_plain_sgd_sai(),
            memory=_sgd_sai_bytes(size.momentum, "fp32"),
        ),
        Trained(
            "adamw",
            "AdamW",
            train=builders.adamw,
            colour=("#1d4ed8", "#7aa2f7"),
            start=1e-3,
            memory=Memory(each(size.adam), size.as_parameters),  # √v of every parameter at once
        ),
        Trained(
            "sgd",
            "SGD with momentum",
            train=builders.sgd,
            colour=("#4d7c0f", "#a3c76d"),
            start=0.1,
            memory=Memory(size.as_parameters, size.nothing),
        ),
        Peer("sgd-no-momentum", "SGD without momentum", memory=Memory(size.nothing, size.nothing)),
        Trained(
            "adam-mini",
            "Adam-mini",
            needs=package("adam_mini", "study"),
            train=builders.adam_mini_decayed,
            colour=("#7e22ce", "#c084fc"),
            start=1e-3,
            plain=partial(builders.adam_mini_plain, weight_decay=_DECAY),
            memory=Memory(each(size.adam_mini)),
        ),
        Trained(
            "adam",
            "Adam without decay",
            train=builders.adam,
            colour=("#0369a1", "#38bdf8"),
            start=1e-3,
            memory=Memory(each(size.adam), size.as_parameters),
        ),
        Trained(
            "muon",
            "Muon, AdamW",
            needs=torch_muon,
            train=builders.muon,
            colour=("#0f766e", "#2dd4bf"),
            start=1e-3,
            sharded=False,
            memory=Memory(each(size.muon)),
        ),
        Trained(
            "prodigy",
            "Prodigy",
            needs=package("prodigyopt", "study"),
            train=builders.prodigy,
            colour=("#a16207", "#facc15"),
            start=1.0,
            plain=from_package("prodigyopt", "Prodigy"),
            memory=Memory(each(size.prodigy), releases=False),
        ),
        Trained(
            "schedule-free",
            "Schedule-free AdamW",
            needs=package("schedulefree", "study"),
            train=builders.schedule_free,
            colour=("#4338ca", "#a5b4fc"),
            start=3.16e-3,
            constant=True,
        ),
        Trained(
            "lion",
            "Lion",
            needs=package("optimi", "study"),
            train=builders.lion,
            colour=("#be185d", "#f472b6"),
            start=1e-4,
        ),
        Peer("adafactor", "Adafactor", memory=Memory(each(size.adafactor))),
        Trained(
            "adamw-8bit",
            "AdamW, 8 bit (bitsandbytes)",
            needs=package("bitsandbytes", "8bit"),
            train=builders.bitsandbytes,
            colour=("#1e3a8a", "#93c5fd"),
            start=1e-3,
            tuned_as="adamw",
            sharded=False,
            plain=from_package("bitsandbytes.optim", "AdamW8bit"),
            memory=Memory(size.adam_8bit),
        ),
        Trained(
            "adamw-8bit-torchao",
            "AdamW, 8 bit (torchao)",
            needs=package("torchao", "8bit"),
            train=builders.torchao,
            colour=("#155e75", "#67e8f9"),
            start=1e-3,
            tuned_as="adamw",
            plain=from_package("torchao.optim", "AdamW8bit"),
            by_default=False,
        ),
        Peer(
            "flash-sgd",
            "FlashSGDW",
            needs=flashoptim,
            plain=builders.flash("FlashSGDW", momentum=0.9),
            by_default=False,
            memory=Memory(each(size.flash(1))),
        ),
        Peer(
            "flash-adamw",
            "FlashAdamW",
            needs=flashoptim,
            plain=builders.flash("FlashAdamW"),
            by_default=False,
            memory=Memory(each(size.flash(2, step=8))),
        ),
        Trained(
            "sgd-sai-sqrt-d",
            "SGD-SaI, √d",
            train=builders.sgd_sai(scale="sqrt_d"),
            colour=("#9a3412", "#fdba74"),
            start=1.0,
        ),
        Trained(
            "sgd-sai-raw",
            "SGD-SaI, raw G",
            train=builders.sgd_sai(normalize=False),
            colour=("#b91c1c", "#f87171"),
            start=3.16e-3,
        ),
        Trained(
            "sgd-sai-raw-sqrt-d",
            "SGD-SaI, raw √d",
            train=builders.sgd_sai(scale="sqrt_d", normalize=False),
            colour=("#881337", "#fda4af"),
            start=3.16e-3,
        ),
        Trained(
            "sgd-sai-rms",
            "SGD-SaI, rms",
            train=builders.sgd_sai(normalize="rms"),
            colour=("#78350f", "#d6a46c"),
            start=1e-3,
        ),
        Trained(
            "sgd-sai-bf16",
            "SGD-SaI, bf16",
            train=builders.sgd_sai(state_dtype=torch.bfloat16),
            colour=("#ea580c", "#fed7aa"),
            start=1.0,
            tuned_as="sgd-sai",
            plain=_plain_sgd_sai(state_dtype=torch.bfloat16),
            memory=_sgd_sai_bytes(size.momentum_bf16, "bf16"),
        ),
        Trained(
            "sgd-sai-8bit",
            "SGD-SaI, 8 bit",
            train=builders.sgd_sai(state_dtype="8bit"),
            colour=("#dc7a4a", "#ffedd5"),
            start=1.0,
            tuned_as="sgd-sai",
            plain=_plain_sgd_sai(state_dtype="8bit"),
            memory=_sgd_sai_bytes(size.momentum_8bit, "8bit"),
        ),
        Peer(
            "sgd-sai-no-momentum",
            "SGD-SaI, no momentum",
            plain=_plain_sgd_sai(momentum=0.0),
            memory=_sgd_sai_bytes(lambda param: 0, "none"),
        ),
        Trained(
            "release",
            "Release 1.0.3",
            needs=release.missing,
            train=builders.release_1_0_3,
            colour=("#57534e", "#d6d3d1"),
            start=3.16e-3,
            sharded=False,
            plain=partial(release.build, weight_decay=_DECAY),
        ),
        # Ways of a step, timed apart.
        Peer("sgd-sai-no-decay", "SGD-SaI, no weight decay", plain=SGDSaI),
        Peer("sgd-sai-foreach", "SGD-SaI, foreach", plain=_plain_sgd_sai(foreach=True), by_default=False),
        Peer(
            "sgd-sai-loop",
            "SGD-SaI, the for-loop",
            plain=_plain_sgd_sai(foreach=False, fused=False),
            by_default=False,
        ),
        Peer(
            "sgd-fused",
            "torch SGD (fused, no decay)",
            plain=partial(torch.optim.SGD, momentum=0.9, fused=True),
        ),
        Peer(
            "sgd-foreach", "torch SGD (foreach)", plain=partial(torch.optim.SGD, momentum=0.9, foreach=True)
        ),
        Peer(
            "adamw-fused",
            "torch AdamW (fused)",
            plain=partial(torch.optim.AdamW, weight_decay=_DECAY, fused=True),
        ),
        Peer(
            "adamw-foreach",
            "torch AdamW (foreach)",
            plain=partial(torch.optim.AdamW, weight_decay=_DECAY, foreach=True),
        ),
        Peer(
            "muon-matrices",
            "torch Muon (matrices alone)",
            needs=torch_muon,
            plain=builders.muon_matrices,
            by_default=False,
        ),
        Peer(
            "pytorch-optimizer",
            "pytorch_optimizer SGDSaI",
            needs=package("pytorch_optimizer", "peers"),
            plain=from_package("pytorch_optimizer", "SGDSaI"),
        ),
        Peer(
            "optimi",
            "optimi SGD",
            needs=package("optimi", "peers"),
            plain=partial(from_package("optimi", "SGD"), momentum=0.9, weight_decay=_DECAY),
        ),
    )
}
