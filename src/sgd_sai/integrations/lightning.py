"""g-SNR of a model that Lightning trains, in one line."""

from __future__ import annotations

from typing import Any

from lightning import Callback
from torch.optim import Optimizer

from sgd_sai.diagnostics.recorder import GSNRRecorder, scalars


class GSNRCallback(Callback):  # type: ignore[misc]  # lightning is typed, but not checked here
    """Record G_snr, whatever the optimizer: ``Trainer(callbacks=[GSNRCallback()])``.

    "gsnr/<block>" goes to every logger of the Trainer: TensorBoard, CSV, W&B, … The gradient is unscaled and
    not yet clipped.

    Args:
        every: steps between two records.

    Attributes:
        recorder: the `GSNRRecorder`, from the beginning of fitting on.
    """

    def __init__(self, every: int = 10) -> None:
        """See the class."""
        self.every = every
        self.recorder: GSNRRecorder | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        self.recorder = GSNRRecorder(pl_module, every=self.every)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Count the step, and record if it is time to."""
        if self.recorder is None:
            return
        self.recorder.step = trainer.global_step
        rows = self.recorder.count()
        if rows and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(rows), step=trainer.global_step)
