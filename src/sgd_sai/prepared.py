"""The step of one parameter on the GPU, prepared by an ordinary one, for gradient release.

To find out what the launch of its kernel needs costs the host more than the launch, and nearly always gives
what it gave in the step before. So all that it depends on is compared with what it was then, at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor, nn

from sgd_sai.blocks import plain_columns
from sgd_sai.kernels.tables import capturing, on
from sgd_sai.optimizer import SGDSaI
from sgd_sai.options import OPTIONS, Group
from sgd_sai.quantized import noise_of, stored_in
from sgd_sai.released import Released
from sgd_sai.rounding import Noise, kind_of, next_step
from sgd_sai.state import BUFFERS, NORMALIZERS, State
from sgd_sai.update import is_moved_by_kernel
from sgd_sai.update.pieces import check_shapes
from sgd_sai.update.triton_alone import Alone
from sgd_sai.update.triton_launch import copies

_SCALE = ("gsnr", *NORMALIZERS)
_AMP = ("grad_scale", "found_inf")
_options_of = itemgetter(*(name for name in OPTIONS if name != "lr"))


class PreparedStep:
    """The step of a parameter, for as long as only lr, the gradient and the number of the step change.

    Attributes:
        released: what stands where the gradient was.
    """

    def __init__(
        self,
        group: Group,
        index: int,
        state: State,
        *,
        scale: float,
        rounding: str,
        noise: Noise | None,
        buffers: Sequence[Tensor | None],
    ) -> None:
        """See `prepared`; `buffers` are the momentum, its absmax and the compensation."""
        θ: Tensor = group["params"][index]
        m, _, _ = buffers
        self.released = Released(θ)
        self._scale = scale
        self._noise = noise
        self._device = θ.device
        assert θ.grad is not None
        dtypes = θ.dtype, θ.grad.dtype, None if m is None else m.dtype
        self._launch = Alone(dtypes, rounding, θ.numel())
        there = [place for place, buffer in enumerate(buffers) if buffer is not None]
        self._keys = [BUFFERS[place] for place in there]
        self._columns = [0, 1, *(2 + place for place in there)]  # in the row of addresses
        self._facts = _facts(group, index, state, self._tensors(θ, state))

    def __call__(self, optimizer: SGDSaI, group: Group, index: int) -> bool:
        """Move the parameter; False if anything else has changed, and an ordinary step has to do it."""
        if any(getattr(optimizer, name, None) is not None for name in _AMP):  # see `torch.amp.GradScaler`
            return False
        param = group["params"][index]
        state = optimizer.state.get(param, {})
        tensors = self._tensors(param, state)
        if _facts(group, index, state, tensors) != self._facts or capturing(self._device):
            return False
        lr, step = group["lr"], next_step(group, False, counts=False)
        if isinstance(lr, Tensor) or isinstance(step, Tensor):
            return False
        row = [0] * 5
        for column, tensor in zip(self._columns, tensors, strict=True):
            row[column] = tensor.data_ptr()
        with on(self._device):
            self._launch(
                row,
                self._scale,
                self._noise,
                lr=lr,
                step=step,
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                maximize=group["maximize"],
            )
        torch.autograd.graph.increment_version([param, *tensors[2:]])
        return True

    def _tensors(self, param: Tensor, state: State) -> list[Tensor]:
        """θ, g, and those buffers that the step takes; None for one that has been taken away."""
        return [param, param.grad, *(state.get(key) for key in self._keys)]  # type: ignore[list-item]


def _facts(group: Group, index: int, state: State, tensors: Sequence[Tensor | None]) -> tuple[object, ...]:
    """All that the launch depends on; no tensors, which would stay in memory when they are replaced."""
    layouts = [
        t if t is None else (type(t), t.dtype, t.device, t.shape, t.stride(), t.is_neg()) for t in tensors
    ]
    scales = [state.get(key) for key in _SCALE]  # a tensor of float32 may equal a float that it only rounds
    return index, _options_of(group), scales, list(map(type, scales)), layouts


def prepared(optimizer: SGDSaI, group: Group, index: int) -> PreparedStep | None:
    """The next step of a parameter that has just moved, and still has its gradient.

    None unless it is one launch, on tensors as they lie in memory, and numbers that the host knows.
    """
    param: Tensor = group["params"][index]
    if type(param) not in (nn.Parameter, Tensor) or param.dtype == torch.float64 or param.numel() == 0:
        return None
    if group["capturable"] or isinstance(group["lr"], Tensor) or not is_moved_by_kernel(param, group):
        return None
    state = optimizer.state[param]
    columns = plain_columns(group, [param], index, optimizer.state)
    if columns is None:
        return None
    [_], [g], [m], [scale], [rounding] = columns
    stored, absmax = stored_in(m)
    c = rounding if isinstance(rounding, Tensor) else None
    check_shapes(param, g, stored, c)
    if any(copies(param, g, stored, absmax, c)):
        return None
    return PreparedStep(
        group,
        index,
        state,
        scale=scale,
        rounding=kind_of(rounding),
        noise=noise_of(m, rounding),
        buffers=(stored, absmax, c),
    )
