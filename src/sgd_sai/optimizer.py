"""SGDSaI: a `torch.optim.Optimizer` whose step reads like Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sgd_sai import advice, checkpoint, first_gradient
from sgd_sai.blocks import Columns, columns_of
from sgd_sai.cuda_graph import capturing, check_capture
from sgd_sai.distributed.collectives import check_group, raised_together
from sgd_sai.distributed.layout import Part
from sgd_sai.distributed.wrappers import group_of_zero
from sgd_sai.gather import gather
from sgd_sai.given_scales import check_names
from sgd_sai.gsnr import Rule
from sgd_sai.meeting import meeting
from sgd_sai.options import Group, check_leaves, check_options, check_params
from sgd_sai.rounding import next_step
from sgd_sai.several_optimizers import remember
from sgd_sai.state import (
    UNKNOWN,
    check_resized,
    create_states,
    has_scales,
    is_unlatched,
)
from sgd_sai.update import is_moved_by_kernel, lr_of, update

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

    A block *latches* at that first gradient. Until then its momentum stays zero, a gradient of zeros only
    decays it, and a gradient with a NaN or an infinity leaves it unchanged. The maximum is that of the blocks
    which latch first; G̃ of a later block is capped at 1.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts; every option below can be set per
            group. Parameters may be real or complex (as pairs of reals), of any floating dtype.
        lr: the learning rate η ≥ 0, a float or a tensor of one element. AdamW's does not fit unless
            normalize="rms"; see the README.
        momentum: μ in [0, 1). With 0 no buffer is allocated.
        eps: ε ≥ 0, added to the standard deviation, outside the root.
        weight_decay: λ ≥ 0, decoupled: a step multiplies θ by 1 − λη, whatever its scale.
        foreach: True uses torch's multi-tensor operations. None, as `fused` None, chooses the fastest way
            that the device has; with both False the step is the for-loop, the ground truth.
        maximize: ascend. Gradients are never modified.
        capturable: allow the step to be captured in a CUDA graph, once every block has latched. lr must then
            be a tensor, or the graph would keep its value for ever.
        differentiable: let autograd record the step. The scales are constants to it. No parameter may be a
            leaf that requires a gradient: give clones.
        fused: True uses a fused kernel: torch's on the CPU, our Triton kernel on CUDA.
        normalize: True divides by the largest G_snr (Algorithm 1). False lets the raw G_snr multiply lr, as
            the authors' release 1.0.3 does. "rms" divides all G_snr by one number, so that the first update
            has the RMS of AdamW's at the same lr (`sgd_sai.gsnr.rms_normalizer`). It does not depend on the
            scale of the loss where eps is small against every standard deviation. A number divides by itself:
            several optimizers of one model need the same, which `measure_blocks` measures.
        unbiased: use the variance with 1/(d−1) instead of 1/d, as the tutorial listing and release 1.0.3 do.
        measure_first: only measure a block's first gradient; the block moves from its next one on, as in the
            tutorial listing.
        scale: "gsnr"; or "sqrt_d", its limit √d, which depends on the block's size alone; or, for research, a
            callable from `Moments` to a positive float; or the raw G_snr of each parameter by its name, as
            `measure_scales` returns them, for wrappers that flatten the parameters (DeepSpeed).
        blocks: "tensor" makes each parameter a block, "group" each parameter group.
        split: cut each parameter of the group into this many equal blocks along dim 0: 3 for a fused
            q, k, v weight.
        state_dtype: the dtype of the momentum. None: that of the parameter, but float32 at least;
            `torch.bfloat16`: 2 bytes an element; "8bit": one byte, and a float32 for every 256 elements, in
            tensors of 4096 elements or more. What has 16 or 8 bits is rounded stochastically. DTensors keep
            bfloat16 where ranks could cut these 256: where the last dim is no multiple of 256 (times the
            ranks that cut it), or the only one.
        rounding: how bfloat16 parameters are rounded: to "nearest"; "stochastic", with the right mean, by
            bits that depend on the step, the parameter and the element's place alone (`sgd_sai.rounding`);
            "kahan", which keeps the lower half of a float32 beside each element, in 2 more bytes: it trains
            bit for bit as a float32 parameter with these gradients. Float16 parameters can take "kahan". They
            keep what rounding loses as a float16, in which moves below 3e-8 are lost.
        process_group: the ranks over which the maximum is taken, if each holds other parameters of the model
            (pipeline or expert parallelism). Until the maximum is known, every `step` of every rank joins one
            collective, also without gradients; afterwards none does. It is no part of the state: a copied or
            unpickled optimizer has None until you set `optimizer.process_group`. None is the group of a
            `ZeroRedundancyOptimizer` where one makes the optimizer.

    The tutorial listing is ``unbiased=True, measure_first=True``; release 1.0.3 is
    ``normalize=False, unbiased=True, weight_decay=1e-2``.

    State of each parameter: ``momentum_buffer``, and ``gsnr``, the raw G_snr as a float, −1 until the block
    latches (``gsnr_0``, ``gsnr_1``, … with `split`); with it ``gsnr_max``, the largest G_snr of the blocks
    that latched first, and ``gsnr_rms``, the divisor of "rms"; ``momentum_absmax`` beside an 8-bit momentum
    (−1 beside one that could have 8 bits, but has more); ``compensation`` with "kahan", of bfloat16 an int16,
    which is saved as int8 of shape (…, 2). Entries of other tools stay. Each group has ``rounding_step``, the
    number of the last step, from which the bits of stochastic rounding follow, and is told ``gsnr_max`` and
    ``gsnr_rms``. There is no other state, so a checkpoint resumes exactly. A saved state adds
    ``momentum_begun``, since a momentum of zeros may still wait for m₁, and its groups ``momentum_order``.

    Raises:
        ValueError, TypeError: an option or a parameter that is not allowed, by name; a sparse gradient.

    Example:
        >>> optimizer = SGDSaI(model.parameters(), lr=1.0, weight_decay=1e-4)
        >>> loss_fn(model(x), y).backward()
        >>> optimizer.step()
    """

    process_group: ProcessGroup | None = None
    _plain = False  # whether tensors were given that are no nn.Parameter
    _has_scales = False  # whether a block of this rank had a scale; `first_gradient.normalizers` asks
    _unmet: list[Part] | None = None  # None: to be looked up, see `meeting`

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
        normalize: bool | float | Literal["rms"] = True,
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
        }
        self._tables: dict[tuple[int, int, bool], dict[str, Any]] = {}  # of addresses on a GPU; no state
        if process_group is None:
            process_group = group_of_zero()
        else:
            check_group(process_group)
        self.process_group = process_group
        with raised_together(process_group):
            check_options(defaults)
            super().__init__(params, defaults)
        check_names(self.param_groups, process_group)
        remember(self)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its blocks latch at their first gradient. Raises as the constructor does."""
        if isinstance(param_group, dict) and not isinstance(param_group.get("params"), set):
            # The caller's own dict stays the group, as torch has it: others may hold it too.
            given = param_group["params"]
            param_group["params"] = [given] if isinstance(given, Tensor) else list(given)
            check_options({**self.defaults, **param_group})
            check_params(param_group, self.defaults, self.param_groups, self.process_group)
            # Each group has steps of its own, of 32 bits, or equal places would be rounded alike.
            param_group.setdefault("rounding_step", len(self.param_groups) << 32)
            param_group.update(UNKNOWN)  # it may know those of another optimizer
            first_gradient.knows_normalizers(self)  # or raises, before anything has changed
        super().add_param_group(param_group)
        self._unmet = None
        if (known := self.normalizers) != UNKNOWN:
            first_gradient.tell(self.param_groups, known)
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
                try:
                    update(*columns, **arguments)
                except (RuntimeError, ValueError):
                    check_resized(arguments["group"], self.state)
                    raise

    @torch._disable_dynamo  # type: ignore[attr-defined]  # bookkeeping stays Python; torch.compile is given the arithmetic
    def _collect(
        self, alone: tuple[Group, int] | None, compiling: bool
    ) -> list[tuple[Columns, dict[str, Any]]]:
        """The columns of each group, every block with its scale, and what else `update` is given."""
        groups, index = (self.param_groups, None) if alone is None else ([alone[0]], alone[1])
        check_capture(groups)
        if self.defaults["differentiable"]:
            check_leaves(groups)
        beside = [] if alone or capturing() else meeting(self)
        with first_gradient.told_to_others(self, beside):
            gathered = [(group, gather(self, group, index)) for group in groups]
        lists = [(group, blocks) for group, blocks in gathered if isinstance(blocks, list)]
        first_gradient.latch(self, lists, beside)
        collected = []
        for group, blocks in gathered:
            columns = columns_of(blocks, group) if isinstance(blocks, list) else blocks
            # torch.distributed.checkpoint creates the state by a step with lr = 0 that gives no scale, and
            # rounds nothing. With a scale momenta are rounded, whatever lr is.
            counts = alone is None and (
                not columns.params or has_scales([group], self.state) or bool(group["lr"] != 0)
            )
            step = next_step(group, compiling, counts=counts)
            advice.of_decay(self, group)
            if not columns.params:
                continue
            for narrow, part in columns.parts():
                tables = (id(group["params"][index or 0]), len(part.params), narrow)
                arguments = {
                    "lr": lr_of(group, compiling),
                    "step": step,
                    "group": group,
                    "narrow": narrow,
                    "compiling": compiling,
                    "amp": {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")},
                    "cache": self._tables.setdefault(tables, {}),
                }
                collected.append((part, arguments))
        return collected

    @property
    def normalizers(self) -> dict[str, float]:
        """``gsnr_max`` and ``gsnr_rms`` of the first latch, −1 before it; `convert_lr` takes them."""
        return first_gradient.normalizers(self)

    def measure_again(self) -> None:
        """Forget every scale and the normalisers; the next step measures all blocks that have a gradient.

        Momenta stay. It is for blocks that met their first gradient late and are capped at 1; lr must be
        tuned with it. With a process group, call it on every rank.
        """
        first_gradient.measure_again(self)

    def step_alone(self, group: Group, index: int) -> None:
        """Move one parameter of a group, by its gradient; `gradient_release` calls it inside backward."""
        self._move((group, index))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim's optimizers do, as tensors and plain values only.

        A callable scale rule is saved as its name. After the first step the state has every trainable
        parameter, also one without a gradient so far, since distributed checkpoints load key by key.
        """
        if self.state:
            create_states(self.state, self.param_groups, plain=self._plain)
        return checkpoint.portable(super().state_dict(), self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit from `state_dict`, whatever the parameters' dtype.

        A checkpoint of the authors' release 1.0.3 continues as that release would: its groups are not
        normalised and measure the unbiased variance.

        Where both have names, parameters are matched by them, in whatever order; else by place. (The bits of
        stochastic rounding depend on the place.) A trained parameter of which the state holds nothing begins
        anew, with a warning: it may have been frozen.

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
        checkpoint.unpack(self.state, self.param_groups)
        if self.defaults.keys() & UNKNOWN.keys():  # it was pickled as a whole, before there were such states
            checkpoint.renew(self)
        self._tables = {}
        self._unmet = None
        self._has_scales = has_scales(self.param_groups, self.state)
        remember(self)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by `torch.amp.GradScaler`: whether the step itself unscales, without the host's waiting.

        The Triton way does. Until every block has its scale the scaler shall do it, since only finite
        gradients may be measured.
        """
        return all(
            is_moved_by_kernel(param, group)
            and not (param.requires_grad and is_unlatched(param, self.state.get(param, {}), group))
            for group in self.param_groups
            for param in group["params"]
        )


SGD_sai = SGDSaI
"""The name that the paper's tutorial and the authors' release use."""
