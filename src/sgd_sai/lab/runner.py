"""One run: a model, an optimizer, a seed. A run that is killed at any moment resumes bit for bit."""

from __future__ import annotations

import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from sgd_sai import gsnr
from sgd_sai.diagnostics import GSNRRecorder
from sgd_sai.lab import optimizers, provenance, ranks
from sgd_sai.lab.records import (
    CHECKPOINT,
    GSNR,
    PICTURES,
    RUN,
    TEXT,
    BlockGSNR,
    DamagedRun,
    MetricsFile,
    Record,
    RunConfig,
    locked,
    write_aside,
)
from sgd_sai.lab.tasks import ALL, Problem, Task
from sgd_sai.lab.tasks.problem import Batch

EVALUATIONS = 10  # in a run, and one before its first step; g-SNR is measured at the same steps
LOG_EVERY = 5  # steps
CHECKPOINT_EVERY = 25  # steps at least, a multiple of LOG_EVERY: no line is begun when one is written
CHECKPOINTS = 100  # in a run, at most
DIVERGED = 100.0  # nats of training loss; guessing costs ln(classes), 5.5 for bytes

#: (step, training loss, learning rate), after every step.
Watcher = Callable[[int, float, float], None]


def _batches(problem: Problem, seed: int, steps: range, workers: int) -> Iterator[Batch]:
    """The batches of the steps, prepared ahead by `workers` processes."""
    if not workers:
        return (problem.batch(seed, step) for step in steps)
    prepared = DataLoader(
        _Steps(problem, seed),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        generator=torch.Generator(),  # its own: it must not draw from the model's
        multiprocessing_context="fork",
    )
    return iter(prepared)


class _Steps(Dataset[Batch]):
    """Step → batch, as torch's loader wants it."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed

    def __getitem__(self, step: int) -> Batch:
        return self.problem.batch(self.seed, step)


@lru_cache
def load(task: str, data: str | None) -> Problem:
    """The problem of a task, kept for the next run."""
    return ALL[task].load(None if data is None else Path(data))


def check_resumable(config: RunConfig, folder: Path) -> None:
    """ValueError, one line, if `folder` holds a run of another configuration, or on other data."""
    if not (folder / RUN).exists():
        return
    record = Record.read(folder)
    held = {**asdict(record.config), "data": record.task["data"]}
    asked = {**asdict(config), "data": load(config.task, config.data).data}
    differences = [f"{key} {held[key]}, not {asked[key]}" for key in asked if held[key] != asked[key]]
    if differences:
        raise ValueError(f"--resume: {folder} holds a run with {', '.join(differences)}")


def train(config: RunConfig, folder: Path, tuning: dict[str, Any] | None, watch: Watcher) -> Record:
    """Run `config` in `folder`, or go on where the last checkpoint there left it.

    Everything a step depends on is a function of (seed, step) or in the checkpoint: weights, optimizer state,
    torch's generator, step. The schedule is a function of the step.

    Args:
        config: what to run.
        folder: where its files are; created if it is missing.
        tuning: where lr comes from, for the record.
        watch: told of every step.

    Raises:
        KeyboardInterrupt: the record says "interrupted" then, and resuming goes on.
    """
    with ranks.own(folder) as kept:
        kept.mkdir(parents=True, exist_ok=True)
        with locked(kept / ".lock"):  # a process whose parent was killed may still be in its last step
            return _train(config, kept, tuning, watch)


def _train(config: RunConfig, folder: Path, tuning: dict[str, Any] | None, watch: Watcher) -> Record:
    begun = provenance.now()
    held = ranks.told(Record.read(folder) if (folder / RUN).exists() else None)
    if held is not None:
        if held.status in ("finished", "diverged"):
            return held
        begun = held.date
    torch.set_num_threads(config.threads)
    task, problem = ALL[config.task], load(config.task, config.data)
    torch.manual_seed(config.seed)
    model = problem.model().to("cuda" if torch.cuda.is_available() else "cpu")
    model.train()
    called = ranks.spread(model, config.fsdp)
    shrink = task.shrink if config.weight_decay is None else config.lr * config.weight_decay
    optimizer = optimizers.build(config.optimizer, model, config.lr, shrink)
    described = ("title", "about", "metric", "unit", "clip", "shrink")
    record = Record(
        config=config,
        status="running",
        task={
            **{name: getattr(task, name) for name in described},
            "shrink": shrink,
            "data": problem.data,
            "schedule": str(task.schedule),
        },
        parameters=sum(param.numel() for param in model.parameters()),
        tuning=tuning,
        machine=provenance.machine(),
        versions=provenance.versions(),
        command=provenance.command(),
        date=begun,
    )
    record.write(folder)
    run = _Running(config, folder, problem, model, called, optimizer, task)
    try:
        with _ctrl_c_between_steps() as heed:
            record.result, record.status = run.to_the_end(watch, heed)
    except BaseException:
        record.status = "interrupted"
        raise
    finally:
        run.close()
        record.write(folder)
    heed()  # it may have come in the last step
    return record


@contextmanager
def _ctrl_c_between_steps() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the function that is given is called, between two steps.

    In the middle of one it could leave half a line, or TensorBoard's writer waiting for itself. A second
    Ctrl-C is not held back.
    """
    pending = False

    def heed() -> None:
        if pending:
            raise KeyboardInterrupt

    def hold(signum: int, frame: FrameType | None) -> None:
        nonlocal pending
        pending = True
        signal.signal(signal.SIGINT, previous)

    if threading.current_thread() is not threading.main_thread():  # signals are not its business
        yield heed
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:
        signal.signal(signal.SIGINT, hold)
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, previous)


class _Running:
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
        """`called`: the model as training calls it, which may average gradients over ranks."""
        self.config, self.folder, self.problem = config, folder, problem
        self.model, self.called, self.optimizer, self.task = model, called, optimizer, task
        self.device = next(model.parameters()).device
        self.step, self.seconds = 0, 0.0
        self.evaluate_every = max(1, config.steps // EVALUATIONS)
        self.recorder = GSNRRecorder(model)
        self.gsnr = BlockGSNR({name: gsnr.as_real(param).numel() for name, param in self.recorder.named}, {})
        kept = self._restore()
        self.metrics = MetricsFile(folder, kept)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=self.step + 1)
        self.losses: list[float] = []  # since the last line
        self.durations: list[float] = []  # of optimizer.step, in seconds, likewise

    def to_the_end(self, watch: Watcher, heed: Callable[[], None]) -> tuple[dict[str, Any], str]:
        """The result and the status."""
        steps = self.config.steps
        save_every = max(1, steps // CHECKPOINTS // CHECKPOINT_EVERY) * CHECKPOINT_EVERY
        batches = _batches(self.problem, self.config.seed, range(self.step, steps), self.task.workers)
        held_out = self._evaluate() if self.step == 0 else {}
        while self.step < steps:
            heed()
            loss = self._train_one(batches)
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
        """One training step; its loss."""
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
        """Whether an evaluation follows that step."""
        return step % self.evaluate_every == 0 or step == self.config.steps

    def _measure(self) -> None:
        """Record the G_snr of the gradients that the next step will use."""
        values = {row["block"]: row["gsnr"] for row in self.recorder.record()}
        self.gsnr.steps[self.step + 1] = [values.get(name) for name in self.gsnr.d]
        self.gsnr.write(self.folder)

    def _backward(self, batch: Batch) -> float:
        """Gradients of the mean loss of the batch, part by part, of each this rank's share; the loss."""
        parts = zip(*(torch.chunk(each, self.task.accumulate) for each in batch), strict=True)
        losses = []
        for part in parts:
            if not self.problem.judged(part):
                continue
            here = ranks.share(part)
            weight = self.problem.judged(here) / self.problem.judged(batch)
            if not weight:  # of nothing there is no mean: this rank adds nothing, but must take part
                here = part
            with self._precision():
                loss = self.problem.loss(self.called, here) * weight
            (loss * ranks.count()).backward()  # type: ignore[no-untyped-call]  # of which the ranks take the mean
            losses.append(loss.detach())
        return float(ranks.total(torch.stack(losses).sum()))

    def _precision(self) -> AbstractContextManager[None]:
        if not self.task.bf16:
            return nullcontext()
        context: AbstractContextManager[None] = torch.autocast(self.device.type, torch.bfloat16)
        return context

    def _clock(self) -> float:
        """Seconds, when the device has done what it was given."""
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
            return ranks.told(self.problem.evaluate(self.model))

    def _evaluate(self) -> dict[str, float]:
        held_out = self._held_out()
        if math.isfinite(held_out["val_loss"]):
            self._append(held_out)
        return held_out

    def _append(self, line: dict[str, float]) -> None:
        self.metrics.append({"step": self.step, "seconds": self.seconds, **line})
        for name, value in line.items():
            self.board.add_scalar(name, value, self.step)

    def _result(self, **more: float) -> dict[str, Any]:
        result = {"steps": self.step, "seconds": round(self.seconds, 3)}
        state_bytes = optimizers.state_bytes(self.optimizer)
        if self.config.fsdp:  # of which each rank has a part
            state_bytes = int(ranks.total(torch.tensor(state_bytes)))
        return {**result, "state_bytes": state_bytes, **more}

    def _save(self) -> None:
        content = io.BytesIO()
        torch.save(
            {
                **self._state(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all(),
                "step": self.step,
                "seconds": self.seconds,
                "metrics_bytes": self.metrics.sync(),
            },
            content,
        )
        write_aside(self.folder / CHECKPOINT, content.getvalue())

    def _state(self) -> dict[str, Any]:
        """The state of the model, without its frozen parameters, and of the optimizer; whole on rank 0."""
        if self.config.fsdp:
            model, optimizer = ranks.whole_state(self.model, self.optimizer)
        else:
            model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        params = self.model.named_parameters(remove_duplicate=False)  # tied weights have two names
        frozen = {name for name, param in params if not param.requires_grad}
        model = {name: value for name, value in model.items() if name not in frozen}
        return {"model": model, "optimizer": optimizer}

    def _restore(self) -> int:
        """Take over the checkpoint, if there is one; how many bytes of the metrics belong to it."""
        path = self.folder / CHECKPOINT
        content = ranks.told(path.read_bytes() if path.exists() else None)
        if content is None:
            return 0
        try:
            saved = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as error:  # torch.load raises as many kinds as there are ways to be broken
            raise DamagedRun(
                f"{path}: not a checkpoint ({type(error).__name__}); remove its folder"
            ) from None
        if self.config.fsdp:
            ranks.load_whole_state(self.model, self.optimizer, saved["model"], saved["optimizer"])
        else:
            self.model.load_state_dict(saved["model"], strict=False)  # what is frozen is not in it
            self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        torch.cuda.set_rng_state_all(saved["cuda_rng"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        if (self.folder / GSNR).exists():
            held = BlockGSNR.read(self.folder).steps
            self.gsnr.steps = {step: values for step, values in held.items() if step <= self.step}
        return int(saved["metrics_bytes"]) if ranks.first() else 0  # the others' lines are thrown away

    def close(self) -> None:
        """Close the files."""
        self.metrics.close()
        self.board.close()
