"""Parameter groups for any optimizer of torch: decay on matrices, settings by name, layer-wise decay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

#: (name, parameter) pairs, as `nn.Module.named_parameters` gives them.
Named = Iterable[tuple[str, nn.Parameter]]


def param_groups(
    model: nn.Module | Named,
    *,
    weight_decay: float | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    layers: str | None = None,
) -> list[dict[str, Any]]:
    """Sort parameters into groups, one for each set of options; frozen parameters are left out.

    Args:
        model: a module, or its (name, parameter) pairs.
        weight_decay: λ for matrices, that is, parameters of two dimensions or more; biases, the parameters
            of norms, whatever their shape, and other vectors get 0. Of (name, parameter) pairs the norms are
            not known. None: the optimizer's own for all.
        settings: pattern → options of the parameters whose names it matches, as in
            ``{"*.bias": {"lr": 0.1}}``. `*` stands for any characters, dots too. Where several match, the
            later one wins; all of them win over the arguments beside.
        lr: η of the last layer, needed with `layer_decay`.
        layer_decay: δ in (0, 1]. Layer k of n gets η δ^(n+1−k), what comes before the first one η δ^(n+1),
            what comes after the last one η (as in fine-tuning ELECTRA, arXiv 2003.10555).
        layers: a pattern for the names of the layers, in their order: "transformer.h.*" for GPT-2.

    Returns:
        Groups of (name, parameter) pairs, in order of appearance, for the first argument of an optimizer.

    Raises:
        ValueError: a pattern matches nothing; an argument is missing or not allowed.

    Example:
        >>> SGDSaI(param_groups(model, weight_decay=0.1, settings={"lm_head.*": {"lr": 0.5}}), lr=1.0)
    """
    pairs = model.named_parameters() if isinstance(model, nn.Module) else model
    named = [(name, param) for name, param in pairs if param.requires_grad]
    if not named:
        raise ValueError("model: it has no parameter that requires a gradient")
    options: dict[str, dict[str, Any]] = {name: {} for name, _ in named}
    if weight_decay is not None:
        norms = _of_norms(model) if isinstance(model, nn.Module) else set()
        for name, param in named:
            plain = param.dim() < 2 or name.rpartition(".")[2] == "bias" or id(param) in norms
            options[name]["weight_decay"] = 0.0 if plain else weight_decay
    if (layer_decay is None) != (layers is None):
        raise ValueError("layer_decay, layers: given one without the other")
    if lr is not None and layer_decay is None:
        raise ValueError("lr: given without layer_decay, which it belongs to; give it to the optimizer")
    if layer_decay is not None and layers is not None:
        for name, rate in _layer_rates(list(options), lr, layer_decay, layers).items():
            options[name]["lr"] = rate
    for pattern, chosen in (settings or {}).items():
        if not isinstance(chosen, Mapping):
            raise ValueError(f"settings: given {chosen!r} for {pattern!r}; allowed: a mapping of options")
        matched = [name for name in options if fnmatchcase(name, pattern)]
        if not matched:
            raise ValueError(f"settings: {pattern!r} matches no parameter; there are {_some(options)}")
        for name in matched:
            options[name].update(chosen)
    groups: list[dict[str, Any]] = []
    for name, param in named:
        group = next((g for g in groups if _options_of(g) == options[name]), None)
        if group is None:
            group = {"params": [], **options[name]}
            groups.append(group)
        group["params"].append((name, param))
    return groups


def _of_norms(model: nn.Module) -> set[int]:
    """The ids of the parameters of norm layers, which are known by the names of their classes."""
    norms = (module for module in model.modules() if re.search(r"Norm(\dd)?$", type(module).__name__))
    return {id(param) for module in norms for param in module.parameters(recurse=False)}


def _layer_rates(names: list[str], lr: float | None, decay: float, layers: str) -> dict[str, float]:
    """The learning rate of each parameter by the depth of its layer."""
    if lr is None:
        raise ValueError("lr: needed with layer_decay, which multiplies it")
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"layer_decay: given {decay}; allowed: a number in (0, 1]")
    layer_of = {name: _layer(name, layers) for name in names}
    order = list(dict.fromkeys(layer for layer in layer_of.values() if layer is not None))
    if not order:
        raise ValueError(f"layers: {layers!r} matches no start of a name; there are {_some(names)}")
    rates, begun = {}, False
    for name, layer in layer_of.items():
        begun = begun or layer is not None
        depth = order.index(layer) + 1 if layer is not None else len(order) + 1 if begun else 0
        rates[name] = lr * decay ** (len(order) + 1 - depth)
    return rates


def _layer(name: str, pattern: str) -> str | None:
    """The shortest start of the name, up to a dot, that the pattern matches."""
    parts = name.split(".")
    starts = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((start for start in starts if fnmatchcase(start, pattern)), None)


def _options_of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
