"""SGDSaI: a `torch.optim.Optimizer` whose step reads like Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sgd_sai import checkpoint, gsnr, precision
from sgd_sai.blocks import (
    Waiting,
    Work,
    blocks_of,
    given_gsnr,
    plain_columns,
    start_momentum,
    unlatched_blocks,
)
from sgd_sai.checkpoint import gsnr_keys
from sgd_sai.distributed import (
    check_group,
    gather_over_ranks,
    laid_out_as,
    part_of,
    raised_together,
)
from sgd_sai.gsnr import UNLATCHED, Moments, Rule
from sgd_sai.messages import listed, name_of, warn
from sgd_sai.options import (
    Group,
    check_dense,
    check_given,
    check_options,
    check_params,
    check_whole,
    is_given,
)
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
        check_given(self.param_groups, process_group)

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
        """One step of all parameters that have a gradient, or of one: its group and its place there."""
        compiling = torch.compiler.is_compiling()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for group, work in self._scaled(alone, compiling):
                update(
                    *work.columns,
                    lr=work.lr,
                    group=group,
                    compiling=compiling,
                    amp=work.amp,
                    cache=work.cache,
                )

    @torch._disable_dynamo  # type: ignore[attr-defined]  # bookkeeping stays Python; torch.compile is given the arithmetic
    def _scaled(self, alone: tuple[Group, int] | None, compiling: bool) -> list[tuple[Group, Work]]:
        """What moves in this step, group by group, every block with its scale."""
        groups = self.param_groups if alone is None else [alone[0]]
        _check_capture(groups)
        place = None if alone is None else alone[1]
        gathered = [(group, self._gather(group, place)) for group in groups]
        self._latch(gathered)
        moving = [(group, work) for group, work in gathered if work.collect(group)]
        for group, work in moving:
            work.lr = group["lr"]
            if isinstance(work.lr, Tensor):
                work.lr = work.lr.reshape(())  # of shape (1,) it would lend scalars that shape
            elif compiling:
                # A float would be compiled in, and again for each value.
                work.lr = torch.tensor(work.lr, dtype=torch.float64, device="cpu")
            work.amp = {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}
            work.cache = self._tables.setdefault((id(group["params"][place or 0]), len(work.columns[0])), {})
        return moving

    def can_step_alone(self, group: Group) -> bool:
        """True if a parameter of the group needs no gradient but its own: the normalisers are known, and so
        is the scale of a group that is one block."""
        if group["blocks"] == "group" and self._gsnr_of_group(group) == UNLATCHED:
            return False
        return self._knows_normalizers()

    def step_alone(self, group: Group, index: int) -> None:
        """Move one parameter of a group, by its gradient; `gradient_release` calls it inside backward."""
        self._move((group, index))

    def latch_measured(self, measured: Mapping[Tensor, Sequence[Moments]]) -> None:
        """Latch parameters by the moments of their gradients, one for each part; nothing moves.

        What a first step with `measure_first=True` does, for gradients that are gone by then.
        """
        waiting: list[tuple[Group, list[Waiting]]] = []
        moments: list[Moments] = []
        for group in self.param_groups:
            keys = gsnr_keys(group["split"])
            blocks = [
                (
                    Waiting(param, param, None, None, self.state[param], key, None, given_gsnr(group, index)),
                    of_part,
                )
                for index, param in enumerate(group["params"])
                if param in measured
                for key, of_part in zip(keys, measured[param], strict=True)
            ]
            for block, _ in blocks:
                block.state.setdefault(block.key, UNLATCHED)
            if group["blocks"] == "group" and blocks:
                waiting.append((group, [block for block, _ in blocks]))
                moments.append(gsnr.combined([of_block for _, of_block in blocks]))
            else:
                waiting += [(group, [block]) for block, _ in blocks]
                moments += [of_block for _, of_block in blocks]
        self._freeze(waiting, moments)

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
        keys = gsnr_keys(group["split"])
        state = self.state[param]
        # An empty parameter will never be measured, and must not be waited for.
        state.update(dict.fromkeys(keys, UNLATCHED if param.numel() else 1.0))
        if group["momentum"] != 0:
            precision.create_momentum(state, param, group["state_dtype"], len(keys))
        if group["rounding"] == "kahan" and param.dtype.itemsize == 2:
            state["compensation"] = torch.zeros_like(param)

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
            unscales(param, group) and (not param.requires_grad or not self._is_unlatched(param, group))
            for group in self.param_groups
            for param in group["params"]
        )

    def _is_unlatched(self, param: Tensor, group: Group) -> bool:
        state = self.state.get(param, {})
        raws = (state.get(key, UNLATCHED) for key in gsnr_keys(group["split"]))
        return param.numel() > 0 and UNLATCHED in raws

    def _gather(self, group: Group, place: int | None) -> Work:
        """What has a gradient in the group, or at one place of it, with its state, created where missing."""
        work = Work()
        params = group["params"] if place is None else [group["params"][place]]
        if plain := plain_columns(group, params, self.state):
            work.columns = plain
            return work
        keys = gsnr_keys(group["split"])
        for index, param in enumerate(params, place or 0):
            grad = param.grad
            if grad is None:
                continue
            if grad.layout != torch.strided:
                check_dense([(name_of(group, index), grad)])
            grad = laid_out_as(grad, param)
            state = self.state[param]
            if not state:
                self._create_state(param, group)
            if group["momentum"] != 0 and "momentum_buffer" not in state:
                precision.create_momentum(state, param, group["state_dtype"], len(keys))
                if state[keys[0]] != UNLATCHED:  # measured in an earlier step, or momentum was 0 until now
                    for _, g, m, _, _ in blocks_of(param, grad, state, group, keys):
                        start_momentum(m, g, group["maximize"])
            for θ, g, m, c, key in blocks_of(param, grad, state, group, keys):
                raw = state[key]
                if raw == UNLATCHED:
                    part, given = part_of(grad, len(keys), g), given_gsnr(group, index)
                    work.waiting.append(Waiting(θ, g, m, c, state, key, part, given))
                else:
                    work.blocks.append((θ, g, m, raw, c))
        return work

    def _latch(self, gathered: list[tuple[Group, Work]]) -> None:
        """Freeze the scale of each block that meets its first finite, non-zero gradient in this step."""
        waiting = [(group, block) for group, work in gathered for block in unlatched_blocks(group, work)]
        if not waiting and (self.process_group is None or self._knows_normalizers()):
            return
        if _capturing():
            raise RuntimeError(
                f"SGDSaI: {len(waiting)} block(s) without a scale in a CUDA graph capture, which cannot wait "
                "for their gradients; step until all are latched, then capture"
            )
        self._freeze(waiting, gsnr.measure([[b.part for b in block if b.part] for _, block in waiting]))

    def _freeze(self, waiting: list[tuple[Group, list[Waiting]]], moments: list[Moments]) -> None:
        """Latch the blocks whose moments allow it; the others rest if their gradient is not finite."""
        # Every scale is known before the first is written: a rule that raises leaves the state as it was.
        found = [
            self._gsnr_of(group, of_block, block[0].given) if of_block.measurable else UNLATCHED
            for (group, block), of_block in zip(waiting, moments, strict=True)
        ]
        for (group, block), of_block, raw in zip(waiting, moments, found, strict=True):
            for part in block:
                if raw != UNLATCHED:
                    part.latch(raw, group)
                else:
                    part.rests = not of_block.finite
        self._record_normalizers([pair for pair in zip(found, moments, strict=True) if pair[0] != UNLATCHED])

    def _gsnr_of(self, group: Group, moments: Moments, given: float | None) -> float:
        """The raw G_snr of a block: given by its name, or by the group's rule."""
        if given is not None:
            return given
        if group["blocks"] == "group" and (measured := self._gsnr_of_group(group)) != UNLATCHED:
            return measured  # a member whose gradient came late joins the block as it was measured
        rule = group["scale"]
        if rule == "gsnr":
            return gsnr.g_snr(moments, eps=group["eps"], unbiased=group["unbiased"])
        if rule == "sqrt_d":
            return gsnr.sqrt_d(moments)
        raw = float(rule(moments))
        if not 0.0 < raw < math.inf:
            raise ValueError(f"scale: it gave {raw} for {moments}; allowed: a positive, finite number")
        return raw

    def _gsnr_of_group(self, group: Group) -> float:
        """The raw G_snr of a group that is one block, −1 until it is measured."""
        for param in filter(Tensor.numel, group["params"]):
            measured: float = self.state.get(param, {}).get("gsnr", UNLATCHED)
            if measured != UNLATCHED:
                return measured
        return UNLATCHED

    def _record_normalizers(self, latched: list[tuple[float, Moments]]) -> None:
        """Record what divides the scales at the first latch, and hand it to the groups added since."""
        first = not self._knows_normalizers()
        raws, moments = [raw for raw, _ in latched], [of_block for _, of_block in latched]
        given = [max(group["scale"].values()) for group in self.param_groups if is_given(group["scale"])]
        found_here = [max(raws + given) if raws else UNLATCHED, *gsnr.rms_sums(raws, moments)]
        everywhere = [found_here]
        if first and self.process_group is not None:
            everywhere = gather_over_ranks(found_here, self.process_group)
        largest, total_sq, nonzero = zip(*everywhere, strict=True)
        if max(largest) == UNLATCHED:
            return
        for key, found in (
            ("gsnr_max", max(largest)),
            ("gsnr_rms", math.sqrt(sum(total_sq) / sum(nonzero))),
        ):
            recorded = max(group[key] for group in self.param_groups)
            for group in self.param_groups:
                group[key] = found if recorded == UNLATCHED else recorded
        if first:
            self._warn_of_unlatched()

    def _knows_normalizers(self) -> bool:
        return any(group["gsnr_max"] != UNLATCHED for group in self.param_groups)

    def _warn_of_unlatched(self) -> None:
        names = [
            name_of(group, index)
            for group in self.param_groups
            for index, param in enumerate(group["params"])
            if param.requires_grad and self._is_unlatched(param, group)
        ]
        if names:
            warn(
                f"SGDSaI: {len(names)} parameter(s) met no finite, non-zero gradient in the first step; each "
                f"is scaled when it does: {listed(names)}. LoRA's A and zero-initialised layers do this."
            )


SGD_sai = SGDSaI
"""The name that the paper's tutorial and the authors' release use."""


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _check_capture(groups: list[Group]) -> None:
    if not _capturing():
        return
    for group in groups:
        if not group["capturable"]:
            raise RuntimeError("capturable: given False in a CUDA graph capture; allowed: True")
        if not isinstance(group["lr"], Tensor):
            raise RuntimeError(
                f"lr: given {group['lr']!r} in a CUDA graph capture, which would keep that value for ever; "
                "allowed: a 0-dim tensor on the GPU"
            )
