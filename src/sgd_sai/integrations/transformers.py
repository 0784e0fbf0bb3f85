"""g-SNR of a model that transformers' Trainer trains, in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sgd_sai.diagnostics.recorder import GSNRRecorder, scalars


class GSNRCallback(TrainerCallback):  # type: ignore[misc]  # transformers is typed, but not checked here
    """Record G_snr, whatever the optimizer: ``trainer.add_callback(GSNRCallback())``.

    It writes ``gsnr.jsonl`` into the output folder; where the Trainer reports to TensorBoard, "gsnr/<block>"
    into ``runs/gsnr`` there; and into a W&B run where one is active. The gradient is the one that the step
    has used: accumulated, unscaled, and clipped, which changes ‖g‖ and σ but not G_snr.

    Args:
        every: steps between two records.

    Attributes:
        recorder: the `GSNRRecorder`, from the beginning of training on.
    """

    def __init__(self, every: int = 10) -> None:
        """See the class."""
        self.every = every
        self.recorder: GSNRRecorder | None = None
        self._writer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin, or go on after `resume_from_checkpoint`. Every process measures, the first one writes."""
        self.recorder = GSNRRecorder(model, every=self.every)
        self.recorder.step = state.global_step
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.recorder.jsonl = folder / "gsnr.jsonl"
        if "tensorboard" in args.report_to:
            from torch.utils.tensorboard import SummaryWriter

            self.recorder.writer = self._writer = SummaryWriter(str(folder / "runs" / "gsnr"))

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Count the step, and record if it is time to.

        After the step: before it, gradients in float16 are still scaled where nothing clips them.
        """
        if self.recorder is None:
            return
        rows = self.recorder.count(optimizer)
        wandb = sys.modules.get("wandb")
        if rows and state.is_world_process_zero and wandb is not None and wandb.run is not None:
            wandb.log({**scalars(rows), "train/global_step": self.recorder.step})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
