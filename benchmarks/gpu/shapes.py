"""Models as the shapes of their parameters; a tied one is there once."""

from __future__ import annotations

Shapes = list[tuple[int, ...]]


def _linear(outputs: int, inputs: int) -> Shapes:
    return [(outputs, inputs), (outputs,)]


def gpt2(width: int, layers: int) -> Shapes:
    """GPT-2, whose matrices are (inputs, outputs): 768 × 12 is small (124 M), 1600 × 48 is XL (1.5 B)."""
    norm: Shapes = [(width,), (width,)]
    attention = [*norm, (width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp = [*norm, (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *(attention + mlp) * layers, *norm]


def llama(width: int, inner: int, layers: int) -> Shapes:
    """Llama 2: 4096, 11008 × 32 is 7B. No bias, and the output is not tied to the input."""
    mlp: Shapes = [(inner, width), (inner, width), (width, inner)]
    layer: Shapes = [*[(width, width)] * 4, *mlp, (width,), (width,)]
    return [(32000, width), *layer * layers, (width,), (32000, width)]


def vit(width: int, layers: int, patch: int) -> Shapes:
    """ViT for 224 × 224 and 1000 classes: 384 × 12, 16 is S/16 (22 M), 1280 × 32, 14 is H/14 (632 M)."""
    norm: Shapes = [(width,), (width,)]
    attention = [*norm, *_linear(3 * width, width), *_linear(width, width)]
    mlp = [*norm, *_linear(4 * width, width), *_linear(width, 4 * width)]
    stem: Shapes = [(1, 1, width), (1, (224 // patch) ** 2 + 1, width), (width, 3, patch, patch), (width,)]
    return [*stem, *(attention + mlp) * layers, *norm, *_linear(1000, width)]


MODELS: dict[str, Shapes] = {
    "GPT-2 small": gpt2(768, 12),
    "GPT-2 XL": gpt2(1600, 48),
    "Llama-2-7B": llama(4096, 11008, 32),
    "ViT-S": vit(384, 12, 16),
    "ViT-H": vit(1280, 32, 14),
}
#: Stands in for each of them in a dry run: a matrix whose momentum fits 8 bits, an odd one, a vector.
TOY: Shapes = [(64, 96), (33, 7), (64,)]


def of(model: str, *, dry: bool) -> Shapes:
    """The shapes of a model, or in a dry run the toy's."""
    return TOY if dry else MODELS[model]
