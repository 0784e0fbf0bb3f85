"""Situations in which only some blocks have a gradient at first.

The cap matters where the first blocks are smaller than the later ones, since G_snr is about √d. In the lab's
own LoRA task and where the last block of a transformer is trained first they are not, so each of these has a
neighbour in which they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from sgd_sai.lab.tasks import ALL, Problem, gpt, lora, pretrained
from sgd_sai.lab.tasks.problem import Batch

SEQUENCES = 4  # of a batch of text, a quarter of the lab's: there is one core for all runs
_WIDTH = 128
_STRETCH = 16  # neighbours that stay in one half of what is held out


@dataclass(frozen=True)
class Situation:
    """One model, its data, and which blocks are late.

    Attributes:
        title: what the page calls it.
        load: makes the problem; all that is trained at any time has `requires_grad`.
        steps: of a run.
        starts: way → the first learning rate of its search, as the exponent of 10^(1/8).
        first: of frozen beginnings, whether a parameter is trained in the first third; else None.
    """

    title: str
    load: Callable[[], Problem]
    steps: int
    starts: dict[str, int]
    first: Callable[[str], bool] | None = None


def halves(problem: Problem) -> tuple[Problem, Problem]:
    """The problem with one half of what is held out, for searches, and with the other, for what counts."""
    parts = [torch.cat(of) for of in zip(*problem.validation, strict=True)]
    stretches: Sequence[Batch] = list(zip(*(part.split(_STRETCH) for part in parts), strict=True))
    return replace(problem, validation=stretches[::2]), replace(problem, validation=stretches[1::2])


def _shorter(problem: Problem) -> Problem:
    """Smaller batches of the same text."""

    def batch(seed: int, step: int) -> Batch:
        return tuple(part[:SEQUENCES] for part in problem.batch(seed, step))

    return replace(problem, batch=batch)


@cache
def _base() -> dict[str, Tensor]:
    """The weights from which the lab's LoRA task starts."""
    return pretrained.weights("gpt", gpt.load(None, gpt.tiny, gpt.CONTEXT, gpt.BATCH), 400, 3e-3)


def _trained() -> nn.Module:
    model = gpt.tiny()
    model.load_state_dict(_base())
    return model


def _lora() -> Problem:
    return _shorter(ALL["lora"].load(None))


def _down() -> nn.Module:
    return lora.adapted(_trained(), ["mlp.c_proj"], transposed=True)


def _other_text(model: Callable[[], nn.Module]) -> Problem:
    """Another model on the text of the LoRA task."""
    return replace(_lora(), model=model)


def untied() -> nn.Module:
    """The lab's small GPT with a head of its own that is zero."""
    model = gpt.model(_WIDTH, 4, 4, gpt.CONTEXT, tied=False)
    nn.init.zeros_(model.lm_head.weight)
    return model


def _zero_head() -> Problem:
    return replace(_shorter(gpt.load(None)), model=untied)


def _zero_classifier() -> Problem:
    problem = ALL["vit"].load(None)

    def model() -> nn.Module:
        network = problem.model()
        for param in network.classifier.parameters():  # type: ignore[operator, union-attr]
            nn.init.zeros_(param)
        return network

    return replace(problem, model=model)


def _last_block(name: str) -> bool:
    return ".ln_f." in name or ".h.3." in name


def _vectors(name: str) -> bool:
    return name.endswith("bias") or ".ln_" in name


def _starts(sai: int, adamw: int) -> dict[str, int]:
    """One start for the forms whose largest scale is 1; "rms" has AdamW's unit, and wants a smaller rate."""
    return {
        "as it is": sai,
        "measure_again": sai,
        "measure_scales": sai,
        "rms": adamw - 4,
        "adamw": adamw,
    }


SITUATIONS = {
    "lora": Situation("LoRA on query, key and value", _lora, 150, _starts(4, -16)),
    "lora_down": Situation(
        "LoRA on the MLP's second matrix", partial(_other_text, _down), 150, _starts(4, -16)
    ),
    "zero_head": Situation("GPT with a zero head", _zero_head, 300, _starts(0, -20)),
    "zero_classifier": Situation("ViT with a zero head", _zero_classifier, 240, _starts(0, -20)),
    "unfreezing": Situation(
        "last block first, then all",
        partial(_other_text, _trained),
        120,
        _starts(-4, -24),
        first=_last_block,
    ),
    "unfreezing_vectors": Situation(
        "norms and biases first, then all",
        partial(_other_text, _trained),
        120,
        _starts(-4, -24),
        first=_vectors,
    ),
}
