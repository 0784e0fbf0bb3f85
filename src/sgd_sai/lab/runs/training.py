"""The loop of a run: steps, evaluations, measurements, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sgd_sai import gsnr
from sgd_sai.diagnostics import GSNRRecorder
from sgd_sai.files import write_aside
from sgd_sai.lab import optimizers
from sgd_sai.lab.faults import damage_named
from sgd_sai.lab.records import GSNR, PICTURES, TEXT, BlockGSNR, MetricsFile, RunConfig, Status, check_metrics
from sgd_sai.lab.runs import checkpoint, processes
from sgd_sai.lab.runs.board import Board
from sgd_sai.lab.runs.prefetch import batches
from sgd_sai.lab.tasks import Problem, Task
from sgd_sai.lab.tasks.problem import Batch

EVALUATIONS = 10  # in a run, and one before its first step; g-SNR is measured at the same steps
LOG_EVERY = 5  # steps
CHECKPOINT_EVERY = 25  # steps at least, a multiple of LOG_EVERY: no line is begun when one is written
CHECKPOINTS = 100  # in a run, at most
DIVERGED = 100.0  # nats of training loss; guessing costs ln(classes), 5.5 for bytes

#: (step, training loss, learning rate), after every step.
Watcher = Callable[[int, float, float], None]


class Training:
    """A run in progress."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        problem: Problem,
        model: nn.Module,
        called: nn.Module,
        optimizer: Optimizer,
        task: Task,
    ) -> None:
        """Take over the state that `folder` holds; nothing of it changes before `opened`.

        `called`: the model as training calls it, which may average gradients over processes.
        """
        self.config, self.folder, self.problem = config, folder, problem
        self.model, self.called, self.optimizer, self.task = model, called, optimizer, task
        self.device = next(model.parameters()).device
        self.step, self.seconds = 0, 0.0
        self.evaluate_every = max(1, config.steps // EVALUATIONS)
        self.recorder = GSNRRecorder(model)
        self.gsnr = BlockGSNR({name: gsnr.as_real(param).numel() for name, param in self.recorder.named}, {})
        self.kept = self._restore()
        self.losses: list[float] = []  # since the last line
        self.durations: list[float] = []  # of optimizer.step, in seconds, likewise

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the files for appending, and close them."""
        self.metrics = MetricsFile(self.folder, self.kept)
        with closing(self.metrics):
            self.board = Board(self.folder / "tensorboard", purge_step=self.step + 1)
            with closing(self.board):
                yield

    def to_the_end(self, watch: Watcher, heed: Callable[[], None]) -> tuple[dict[str, Any], Status]:
        """Train, evaluate and record to the last step or a divergence; return the result and the status."""
        steps = self.config.steps
        save_every = max(1, steps // CHECKPOINTS // CHECKPOINT_EVERY) * CHECKPOINT_EVERY
        upcoming = batches(self.problem, self.config.seed, range(self.step, steps), self.task.workers)
        held_out = self._evaluate() if self.step == 0 else {}
        while self.step < steps:
            heed()
            loss = self._train_one(upcoming)
            if not loss < DIVERGED:
                return self._result(diverged_at=self.step), "diverged"
            watch(self.step, loss, self.optimizer.param_groups[0]["lr"])
            last = self.step == steps
            if self.step % LOG_EVERY == 0 or last:
                self._log()
            if self._evaluated(self.step):
                held_out = self._evaluate()
                if not math.isfinite(held_out["val_loss"]):
                    return self._result(diverged_at=self.step), "diverged"
            if self.step % save_every == 0 or last:
                self._save()
        self._draw()
        if not held_out:  # it was killed between its last checkpoint and its record
            held_out = self._held_out()
        return self._result(**held_out), "finished"

    def _train_one(self, batches: Iterator[Batch]) -> float:
        """Take one training step; return its loss."""
        begun = time.perf_counter()
        constant = optimizers.OPTIMIZERS[self.config.optimizer].constant
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self.task.schedule(self.step, self.config.steps, constant)
        self.optimizer.zero_grad()
        loss = self._backward(next(batches))
        if self.task.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip)
        spent = self._clock() - begun
        if self.step == 0 or self._evaluated(self.step + 1):
            self._measure()
        before = self._clock()
        self.optimizer.step()
        self.durations.append(self._clock() - before)
        self.seconds += spent + self.durations[-1]
        self.losses.append(loss)
        self.step += 1
        return loss

    def _evaluated(self, step: int) -> bool:
        """Return whether an evaluation follows that step."""
        return step % self.evaluate_every == 0 or step == self.config.steps

    def _measure(self) -> None:
        """Record the G_snr of the gradients that the next step will use."""
        values = {row["block"]: row["gsnr"] for row in self.recorder.record()}
        self.gsnr.steps[self.step + 1] = [values.get(name) for name in self.gsnr.d]
        self.gsnr.write(self.folder)

    def _backward(self, batch: Batch) -> float:
        """Compute this rank's share of the gradients of the mean loss, part by part; return the loss."""
        parts = zip(*(torch.chunk(each, self.task.accumulate) for each in batch), strict=True)
        losses = []
        for part in parts:
            if not self.problem.judged(part):
                continue
            here = processes.share(part)
            weight = self.problem.judged(here) / self.problem.judged(batch)
            if not weight:  # of nothing there is no mean: this rank adds nothing, but must take part
                here = part
            with self._precision():
                loss = self.problem.loss(self.called, here) * weight
            (loss * processes.count()).backward()  # type: ignore[no-untyped-call]  # of which the ranks take the mean
            losses.append(loss.detach())
        return float(processes.total(torch.stack(losses).sum()))

    def _precision(self) -> AbstractContextManager[None]:
        if not self.task.bf16:
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast(self.device.type, torch.bfloat16)
        return context

    def _clock(self) -> float:
        """Return seconds, after the device has done all of its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _draw(self) -> None:
        with optimizers.evaluated_weights(self.optimizer):
            made = self.problem.samples(self.model)
        if made is not None:
            write_aside(self.folder / (TEXT if isinstance(made, str) else PICTURES), made)

    def _log(self) -> None:
        line = {
            "train_loss": math.fsum(self.losses) / len(self.losses),
            "lr": self.optimizer.param_groups[0]["lr"],
            "step_ms": 1e3 * median(self.durations),
        }
        self.losses.clear()
        self.durations.clear()
        self._append(line)

    def _held_out(self) -> dict[str, float]:
        with optimizers.evaluated_weights(self.optimizer), self._precision():
            return processes.told(self.problem.evaluate(self.model))

    def _evaluate(self) -> dict[str, float]:
        held_out = self._held_out()
        if math.isfinite(held_out["val_loss"]):
            self._append(held_out)
        return held_out

    def _append(self, line: dict[str, float]) -> None:
        self.metrics.append({"step": self.step, "seconds": self.seconds, **line})
        self.board.add(self.step, line)

    def _result(self, **more: float) -> dict[str, Any]:
        result = {"steps": self.step, "seconds": round(self.seconds, 3)}
        state_bytes = optimizers.state_bytes(self.optimizer)
        if self.config.fsdp:  # of which each rank has a part
            state_bytes = int(processes.total(torch.tensor(state_bytes)))
        return {**result, "state_bytes": state_bytes, **more}

    def _save(self) -> None:
        progress: checkpoint.Progress = {
            "step": self.step,
            "seconds": self.seconds,
            "metrics_bytes": self.metrics.sync(),
        }
        checkpoint.save(self.folder, self.model, self.optimizer, self.config, self.problem.data, progress)

    def _restore(self) -> int:
        """Take over the checkpoint, if there is one; return how many bytes of the metrics belong to it."""
        saved = checkpoint.restore(self.folder, self.model, self.optimizer, self.config, self.problem.data)
        if saved is None:
            processes.decided(partial(check_metrics, self.folder, 0))
            return 0
        self.step, self.seconds = saved["step"], saved["seconds"]
        kept = saved["metrics_bytes"]
        measured = processes.decided(partial(_beside_checkpoint, self.folder, kept, self.gsnr.d))
        self.gsnr.steps = {step: values for step, values in measured.items() if step <= self.step}
        return kept if processes.first() else 0  # the others' lines are thrown away


def _beside_checkpoint(folder: Path, kept: int, blocks: dict[str, int]) -> dict[int, list[float | None]]:
    """Return the g-SNR that was measured; `DamagedRun` if it or the metrics do not fit the checkpoint."""
    check_metrics(folder, kept)
    held = BlockGSNR.read(folder)
    if held is None:
        return {}
    with damage_named(folder / GSNR, "the g-SNR of this run"):
        if held.d != blocks:
            raise ValueError("its blocks are not those of the model")
    return held.steps
