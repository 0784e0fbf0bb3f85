"""A saved state is matched to an optimizer by the names of parameters, where both have names.

By place alone, two parameters of one shape that have changed places would exchange momentum and scale
without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgd_sai.messages import listed
from sgd_sai.options import Group

#: Components that wrappers put into names: DDP and averaged models, torch.compile, FSDP1, checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def in_order_of(groups: Sequence[Group], saved: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The saved groups, and the parameters of each, in the order in which the optimizer has their names.

    They stay as they are where a side has no names for its parameters, or one name for two of them; and
    where torch.distributed.checkpoint has put names in place of numbers, since it has matched them.

    Raises:
        ValueError: a name is on one side alone, or the parameters of a group are in several groups there.
    """
    if any(isinstance(number, str) for group in saved for number in group["params"]):
        return saved
    here, there = _names(groups), _names(saved)
    if here is None or there is None:
        return saved
    plain = [[[_unwrapped(name) for name in names] for names in side] for side in (here, there)]
    if all(map(_distinct, plain)):
        here, there = plain
    home = {name: number for number, names in enumerate(there) for name in names}
    own = {name for names in here for name in names}
    if own != home.keys():
        raise ValueError(
            f"state_dict: has parameters that the optimizer has not: {listed(home.keys() - own) or 'none'}; "
            f"it lacks: {listed(own - home.keys()) or 'none'}; allowed: the same names, or, to match by "
            "place, a state from whose groups 'param_names' has been deleted"
        )
    if len(here) != len(there):
        return saved  # the error that follows counts the groups
    empty = [number for number, names in enumerate(there) if not names]
    ordered = []
    for names in here:
        number, *others = sorted({home[name] for name in names}) or [empty.pop(0)]
        if others or len(there[number]) != len(names):
            raise ValueError(
                f"state_dict: {listed(names)} are one group of the optimizer, but not of the state; allowed: "
                "groups of the same parameters, in any order"
            )
        numbers = dict(zip(there[number], saved[number]["params"], strict=True))
        ordered.append({**saved[number], "params": [numbers[name] for name in names]})
    return ordered


def _names(groups: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """The names of the parameters of each group, None unless each parameter has one of its own."""
    names = [list(group.get("param_names") or ()) for group in groups]
    whole = all(len(of) == len(group["params"]) for of, group in zip(names, groups, strict=True))
    strings = all(isinstance(name, str) for of_group in names for name in of_group)
    return names if whole and strings and _distinct(names) else None


def _distinct(names: list[list[str]]) -> bool:
    every = [name for of_group in names for name in of_group]
    return len(set(every)) == len(every)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
