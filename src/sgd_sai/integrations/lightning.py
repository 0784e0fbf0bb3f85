"""g-SNR of a model that Lightning trains, in one line."""

from __future__ import annotations

from typing import Any

from lightning import Callback
from torch.optim import Optimizer

from sgd_sai.diagnostics.recorder import GSNRRecorder, scalars


class GSNRCallback(Callback):  # type: ignore[misc]  # lightning is typed, but not checked here
    """Record G_snr, whatever the optimizer: ``Trainer(callbacks=[GSNRCallback()])``.

    "gsnr/<block>" goes to every logger of the Trainer: TensorBoard, CSV, W&B, … The gradient is unscaled
    (but in 16-mixed where the optimizer is torch's with fused=True, whose step unscales: ‖g‖ and σ are then
    scaled, G_snr is not) and not yet clipped.

    Where there are several optimizers, as for a GAN, each is recorded alone, with its own parameters and
    steps. Checkpoints hold these steps. Loggers get the Trainer's `global_step`, which counts all together.

    Args:
        every: steps of an optimizer between two records of it.

    Attributes:
        recorder: the `GSNRRecorder`, from the beginning of fitting on.
    """

    def __init__(self, every: int = 10) -> None:
        """See the class."""
        self.every = every
        self.recorder: GSNRRecorder | None = None
        self._taken: list[int] = []  # steps of each optimizer, where there are several

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        self.recorder = GSNRRecorder(pl_module, every=self.every)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count anew in a run that is not resumed."""
        if trainer.global_step == 0:
            self._taken = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Count the step, and record if it is time to."""
        if self.recorder is None:
            return
        several = len(trainer.optimizers) > 1
        if several and len(self._taken) != len(trainer.optimizers):
            self._taken = [0] * len(trainer.optimizers)
        place = next((k for k, known in enumerate(trainer.optimizers) if known is optimizer), 0)
        self.recorder.step = self._taken[place] if several else trainer.global_step
        rows = self.recorder.count(optimizer)
        if several:
            self._taken[place] = self.recorder.step
        if rows and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(rows), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps of each optimizer, for a checkpoint; nothing where `global_step` has them."""
        return {"steps": list(self._taken)} if self._taken else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from a checkpoint."""
        self._taken = list(state_dict.get("steps", []))
