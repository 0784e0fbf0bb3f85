"""SGDSaI: a `torch.optim.Optimizer` whose step reads like Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sgd_sai import checkpoint, first_gradient
from sgd_sai.blocks import Block, Columns, blocks_of, columns_of, plain_columns, start_momentum
from sgd_sai.cuda_graph import check_capture
from sgd_sai.distributed.collectives import check_group, raised_together
from sgd_sai.distributed.layout import laid_out_as
from sgd_sai.given_scales import check_names, check_whole
from sgd_sai.gsnr import UNLATCHED, Rule, check_dense
from sgd_sai.messages import name_of
from sgd_sai.options import Group, check_options, check_params
from sgd_sai.state import create_momentum, create_state, is_unlatched
from sgd_sai.update import unscales, update

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SGDSaI(Optimizer):
    """SGD-SaI: SGD with momentum, scaled per block by the g-SNR of its first gradient (arXiv 2412.11768).

    Per block i, at its first finite, non-zero gradient, then frozen (Algorithm 1)::

        G_snr = ‖g‖₂ / (√G_var + ε)           G̃ᵢ = G_snrᵢ / max_k G_snr_k

    and at every step::

        m₁ = g₁;  m_t = μ m_{t−1} + (1 − μ) g_t
        θ ← θ − λ η θ
        θ ← θ − η G̃ᵢ m_t

    Until a block meets such a gradient it is *unlatched*: its momentum stays zero, a zero gradient only
    decays it, and a gradient with a NaN or an infinity leaves it as it is. A block that latches after the
    first one is divided by the maximum recorded then, and capped at 1.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts; every option below can be set per
            group. Real and complex (as pairs of reals), any floating dtype.
        lr: η ≥ 0, a float or a 0-dim tensor. Not AdamW's: see the README's table.
        momentum: μ in [0, 1). With 0 no buffer is allocated.
        eps: ε ≥ 0, added to the deviation outside the root.
        weight_decay: λ ≥ 0, decoupled; a step shrinks θ by the factor 1 − λη, whatever its scale.
        foreach: use torch's multi-tensor operations. None, as `fused` None: the fastest way there is;
            with both False the for-loop that is the ground truth.
        maximize: ascend. Gradients are never modified.
        capturable: the step may be captured in a CUDA graph, once every block is latched. lr must be a
            tensor then, or the graph keeps the value that it had.
        differentiable: autograd records the step. The scales are constants to it.
        fused: use a fused kernel: on the CPU torch's, on CUDA our Triton one.
        normalize: divide by the largest G_snr (Algorithm 1). False: the raw G_snr multiplies lr, as in the
            authors' release 1.0.3. "rms": divide all by one number, with which the first update has the RMS
            of AdamW's at the same lr (`sgd_sai.gsnr.rms_normalizer`), whatever the loss is multiplied by,
            where eps is small against every deviation.
        unbiased: the variance with 1/(d−1), as in the tutorial listing and release 1.0.3, instead of 1/d.
        measure_first: a block's first gradient is only measured and the block moves from its next one on,
            as in the tutorial listing.
        scale: "gsnr"; "sqrt_d", its limit √d, which depends on the block's size alone; or, for research, a
            callable from `Moments` to a positive float; or the raw G_snr of each parameter by its name, as
            `measure_scales` gives them, for parameters that are named and of which a rank holds a part that
            it cannot measure (DeepSpeed).
        blocks: "tensor", one block per parameter; "group", one block per parameter group.
        split: cut each parameter of the group into this many equal blocks along dim 0 (3 for a fused
            q, k, v weight).
        state_dtype: of the momentum. None: the parameter's, but float32 at least; `torch.bfloat16`, 2 bytes
            an element; "8bit", one byte and a float32 for each 256, in tensors of 4096 elements or more.
        rounding: of bfloat16 parameters: "nearest"; "stochastic", right in the mean, by torch's default
            generator; "kahan", exact to about float32, in 2 more bytes an element. Float16 ones take "kahan".
        process_group: all ranks that hold parameters of the model, where each holds others (pipeline or
            expert parallelism): the maximum is theirs. Until it is known, each `step` of each rank joins one
            collective, with gradients or without; afterwards none does. Not part of the state: a copy or an
            unpickled optimizer has None until `optimizer.process_group = …`.

    The tutorial listing is ``unbiased=True, measure_first=True``; release 1.0.3 is
    ``normalize=False, unbiased=True, weight_decay=1e-2``.

    State, per parameter: ``momentum_buffer`` and ``gsnr``, the raw G_snr as a float, −1 while unlatched
    (``gsnr_0``, ``gsnr_1``, … for a split one); ``momentum_absmax`` beside a momentum in 8 bits, and
    ``compensation`` for "kahan". Per group: ``gsnr_max``, the largest G_snr of all groups at the first
    latch, and ``gsnr_rms``, the divisor of "rms". Nothing else, so any checkpoint resumes exactly. A saved
    state also says, as ``momentum_begun``, of a momentum of zeros whether m₁ is still to come.

    Raises:
        ValueError, TypeError: an option or a parameter that is not allowed, by name; a sparse gradient.

    Example:
        >>> optimizer = SGDSaI(model.parameters(), lr=1.0, weight_decay=1e-4)
        >>> loss_fn(model(x), y).backward()
        >>> optimizer.step()
    """

    process_group: ProcessGroup | None = None
    _plain = False  # whether tensors were given that are no nn.Parameter

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        normalize: bool | Literal["rms"] = True,
        unbiased: bool = False,
        measure_first: bool = False,
        scale: Literal["gsnr", "sqrt_d"] | Rule | Mapping[str, float] = "gsnr",
        blocks: Literal["tensor", "group"] = "tensor",
        split: int = 1,
        state_dtype: torch.dtype | Literal["8bit"] | None = None,
        rounding: Literal["nearest", "stochastic", "kahan"] = "nearest",
        process_group: ProcessGroup | None = None,
    ) -> None:
        """See the class."""
        defaults: Group = {
            "lr": lr,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "normalize": normalize,
            "unbiased": unbiased,
            "measure_first": measure_first,
            "scale": scale,
            "blocks": blocks,
            "split": split,
            "state_dtype": state_dtype,
            "rounding": rounding,
            "gsnr_max": UNLATCHED,
            "gsnr_rms": UNLATCHED,
        }
        self._tables: dict[tuple[int, int], dict[str, Any]] = {}  # of addresses on a GPU; no state
        if process_group is not None:
            check_group(process_group)
        self.process_group = process_group
        with raised_together(process_group):
            check_options(defaults)
            super().__init__(params, defaults)
        check_names(self.param_groups, process_group)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its blocks latch at their first gradient. Raises as the constructor does."""
        if isinstance(param_group, dict) and not isinstance(param_group.get("params"), set):
            given = param_group["params"]
            param_group = {**param_group, "params": [given] if isinstance(given, Tensor) else list(given)}
            check_options({**self.defaults, **param_group})
            check_params(param_group, self.defaults, self.param_groups, self.process_group)
        super().add_param_group(param_group)
        self._plain |= not all(isinstance(p, nn.Parameter) for p in self.param_groups[-1]["params"])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step of Algorithm 1.

        Args:
            closure: reevaluates the model and returns the loss; called once.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._move()
        return loss

    def _move(self, alone: tuple[Group, int] | None = None) -> None:
        """Move all parameters that have a gradient, or the one at an index of a group."""
        compiling = torch.compiler.is_compiling()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for columns, arguments in self._collect(alone, compiling):
                update(*columns, **arguments)

    @torch._disable_dynamo  # type: ignore[attr-defined]  # bookkeeping stays Python; torch.compile is given the arithmetic
    def _collect(
        self, alone: tuple[Group, int] | None, compiling: bool
    ) -> list[tuple[Columns, dict[str, Any]]]:
        """The columns of each group, every block with its scale, and what else `update` is given."""
        groups, index = (self.param_groups, None) if alone is None else ([alone[0]], alone[1])
        check_capture(groups)
        gathered = [(group, self._gather(group, index)) for group in groups]
        first_gradient.latch(self, [(g, blocks) for g, blocks in gathered if isinstance(blocks, list)])
        collected = []
        for group, blocks in gathered:
            columns = columns_of(blocks, group) if isinstance(blocks, list) else blocks
            if columns.params:
                tables = (id(group["params"][index or 0]), len(columns.params))
                arguments = {
                    "lr": _lr_of(group, compiling),
                    "group": group,
                    "compiling": compiling,
                    "amp": {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")},
                    "cache": self._tables.setdefault(tables, {}),
                }
                collected.append((columns, arguments))
        return collected

    def _gather(self, group: Group, index: int | None) -> Columns | list[Block]:
        """What has a gradient in a group, or at one index of it: columns if all is plain, else blocks."""
        params = group["params"] if index is None else [group["params"][index]]
        if columns := plain_columns(group, params, self.state):
            return columns
        return [
            block
            for place, param in enumerate(params, index or 0)
            if param.grad is not None
            for block in self._blocks(group, place)
        ]

    def _blocks(self, group: Group, index: int) -> list[Block]:
        """The blocks of a parameter that has a gradient; its state is created where it is missing."""
        param = group["params"][index]
        if param.grad.layout != torch.strided:
            check_dense([(name_of(group, index), param.grad)])
        state = self.state[param]
        if not state:
            self._create_state(param, group)
        begins = group["momentum"] != 0 and "momentum_buffer" not in state
        if begins:
            create_momentum(state, param, group)
        blocks = list(blocks_of(index, param, laid_out_as(param.grad, param), state, group))
        if begins:
            for block in blocks:
                if block.gsnr != UNLATCHED:  # measured in an earlier step, or momentum was 0 until now
                    start_momentum(block.momentum, block.grad, group["maximize"])
        return blocks

    def step_alone(self, group: Group, index: int) -> None:
        """Move one parameter of a group, by its gradient; `gradient_release` calls it inside backward."""
        self._move((group, index))

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim's, tensors and plain values only: a callable scale rule is saved as its name.

        After the first step it has every trainable parameter, also one that met no gradient yet: distributed
        checkpoints load what was saved, key by key.
        """
        if self.state:
            self._complete_state()
        return checkpoint.portable(super().state_dict(), self.param_groups)

    def _complete_state(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad and param not in self.state:
                    self._create_state(param, group)

    def _create_state(self, param: Tensor, group: Group) -> None:
        """State of an unlatched parameter."""
        check_whole(param, group, self._plain)
        create_state(self.state[param], param, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit from `state_dict`, whatever the parameters' dtype.

        A checkpoint of the authors' release 1.0.3 continues as that release would: its groups are not
        normalised and measure the unbiased variance.

        A trained parameter of which it holds nothing begins anew, with a warning: it may have been frozen.

        Raises:
            ValueError: it is not a state of this optimizer, or does not fit its parameters; nothing changes.
        """
        fitting = self.register_load_state_dict_pre_hook(checkpoint.fitted)  # runs after the user's own
        try:
            super().load_state_dict(state_dict)
        finally:
            fitting.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a loaded or unpickled state."""
        super().__setstate__(state)
        checkpoint.unpack(self.state)
        self._tables = {}

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by `torch.amp.GradScaler`: whether the step itself unscales, without the host's waiting.

        The Triton way does. Until every block has its scale the scaler shall do it, since only finite
        gradients may be measured.
        """
        return all(
            unscales(param, group)
            and not (param.requires_grad and is_unlatched(param, self.state.get(param, {}), group))
            for group in self.param_groups
            for param in group["params"]
        )


SGD_sai = SGDSaI
"""The name that the paper's tutorial and the authors' release use."""


def _lr_of(group: Group, compiling: bool) -> float | Tensor:
    lr: float | Tensor = group["lr"]
    if isinstance(lr, Tensor):
        return lr.reshape(())  # of shape (1,) it would lend scalars that shape
    if compiling:  # a float would be compiled in, and again for each value
        return torch.tensor(lr, dtype=torch.float64, device="cpu")
    return lr
