"""Muon as it is used: on the matrices inside a network, with AdamW on the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class MuonAdamW(Optimizer):
    """torch's Muon for weight matrices, torch's AdamW for embeddings, convolutions, biases and norms.

    Muon's update is rescaled to AdamW's root mean square (`match_rms_adamw`), so that one learning rate
    serves both. An output layer that is not tied to an embedding counts as a matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        """`groups`: the parameters of `model` that are trained, each group with its own "weight_decay"."""
        embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}

        def suits(param: Tensor) -> bool:
            return param.dim() == 2 and id(param) not in embeddings

        def part(wanted: bool) -> list[dict[str, Any]]:
            chosen = [
                {**group, "params": [p for p in group["params"] if suits(p) is wanted]} for group in groups
            ]
            return [group for group in chosen if group["params"]]

        self.parts: list[Optimizer] = []
        if matrices := part(True):
            self.parts.append(
                torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if rest := part(False):
            self.parts.append(
                torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
            )
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Show the groups and states of the two as this optimizer's: the same objects."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state.clear()
        for part in self.parts:
            self.state.update(part.state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both; the closure, if there is one, runs once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        self._share()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """{"parts": one state dict for each of the two}."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)
        self._share()
