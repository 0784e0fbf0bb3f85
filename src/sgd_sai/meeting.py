"""Where the ranks that share DTensors meet before these have scales, whether they have gradients or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgd_sai.distributed.layout import Part, is_spread, local, sharing_groups
from sgd_sai.gsnr import has_data
from sgd_sai.state import has_scale, is_empty

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from sgd_sai.optimizer import SGDSaI


def meeting(optimizer: SGDSaI) -> list[Part]:
    """Nothing, of each group of ranks of whose DTensors none has a scale: there all of them take part.

    So a rank that has no gradient in the first step learns that others have, where one that stayed away would
    let them wait for ever. What a group knows is the same on its ranks: DTensors get their scales together.
    """
    if optimizer._unmet is None or optimizer._unmet:  # once all have met, nobody looks again
        met: set[ProcessGroup] = set()
        unmet: dict[ProcessGroup, Part] = {}
        for group in optimizer.param_groups:
            for param in filter(is_spread, group["params"]):
                if has_scale(optimizer.state.get(param, {}), group):
                    met.update(sharing_groups(param))
                elif param.requires_grad and not is_empty(param) and has_data(local(param)):
                    for ranks in sharing_groups(param):
                        unmet[ranks] = Part(local(param).new_empty(0), 0, (ranks,), "none, in a first step")
        optimizer._unmet = [part for ranks, part in unmet.items() if ranks not in met]
    return optimizer._unmet
