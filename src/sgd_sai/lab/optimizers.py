"""The optimizers of `sgd_sai.peers` that the lab trains, and what a run does with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import Optimizer

from sgd_sai.distributed.layout import local
from sgd_sai.peers import PEERS, Trained, check_installed

__all__ = ["DEFAULT", "OPTIMIZERS", "build", "check_installed", "evaluated_weights", "state_bytes"]

#: Those that can be compared.
OPTIMIZERS = {name: peer for name, peer in PEERS.items() if isinstance(peer, Trained)}

#: Compared unless others are named.
DEFAULT = ("sgd-sai", "adamw", "sgd")


def build(name: str, model: nn.Module, lr: float, shrink: float) -> Optimizer:
    """The optimizer `name` for `model`, with peak learning rate η = `lr` and decay κ = `shrink`."""
    return OPTIMIZERS[name].train(model, lr, shrink)


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
