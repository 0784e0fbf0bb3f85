"""The optimizers of `sgd_sai.peers` whose bytes the planner knows."""

from __future__ import annotations

from sgd_sai.peers import PEERS, Peer
from sgd_sai.peers.state_bytes import Memory

#: name → the entry and its formulas.
PLANNED: dict[str, tuple[Peer, Memory]] = {
    name: (peer, peer.memory) for name, peer in PEERS.items() if peer.memory is not None
}


def select(name: str, state_dtype: str | None = None) -> list[tuple[Peer, Memory]]:
    """The optimizer `name`: one, or one for each state dtype that it offers, unless one is given.

    Raises:
        ValueError: an unknown optimizer, or a state dtype that it does not keep.
    """
    if name not in PLANNED:
        raise ValueError(f"optimizer: given {name!r}; allowed: {', '.join(PLANNED)}")
    known = [(peer, memory) for peer, memory in PLANNED.values() if name in (peer.name, memory.choice_of)]
    found = [each for each in known if state_dtype in (None, each[1].state_dtype)]
    if not found:
        choices = [memory.state_dtype for _, memory in known if memory.state_dtype]
        allowed = ", ".join(choices) or "none, as its state has the parameters' dtype"
        raise ValueError(f"state_dtype: given {state_dtype!r} for {name}; allowed: {allowed}")
    return found
