"""SGDSaI in other people's training loops: no extra call, and a resumed run equals the uninterrupted one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sgd_sai import SGDSaI, gradient_release

os.environ.setdefault("HF_HUB_OFFLINE", "1")

STEPS = 8


class Pairs(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """A small regression set, the same for everybody."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(STEPS * 4, 6, generator=generator)
        self.y = self.x[:, :2] * 2

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class Net(nn.Module):
    """An MLP that returns its loss, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.layers(x)
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def moved(net: nn.Module) -> bool:
    return not any(torch.equal(p, q) for p, q in zip(net.parameters(), Net().parameters(), strict=True))


def test_transformers_trainer(tmp_path: Path) -> None:
    """`optimizer_cls_and_kwargs`; its two groups; a scheduler of its own; resumed from its checkpoint."""
    from transformers import Trainer, TrainingArguments

    def trainer(out: Path, **more: Any) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(out), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=0.3,
            weight_decay=0.01, warmup_steps=2, lr_scheduler_type="cosine", save_steps=STEPS // 2,
            report_to=[], disable_tqdm=True, use_cpu=True, seed=1, **more,
        )  # fmt: skip
        return Trainer(
            model=Net(),
            args=arguments,
            train_dataset=Pairs(),
            optimizer_cls_and_kwargs=(SGDSaI, {"lr": 0.3, "momentum": 0.9}),
        )

    whole = trainer(tmp_path / "a")
    whole.train()
    assert {group["weight_decay"] for group in whole.optimizer.param_groups} == {0.0, 0.01}
    assert moved(whole.model)
    resumed = trainer(tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{STEPS // 2}"))
    assert same_weights(whole.model, resumed.model)


def test_accelerate(tmp_path: Path) -> None:
    """`prepare`, gradient accumulation, `save_state` and `load_state`."""
    from accelerate import Accelerator

    def run(stop: int | None = None, resume: bool = False) -> nn.Module:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        net = Net()
        optimizer = SGDSaI(net.parameters(), lr=0.3)
        data = torch.utils.data.DataLoader(Pairs(), batch_size=4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        net, optimizer, data, scheduler = accelerator.prepare(net, optimizer, data, scheduler)
        start = 0
        if resume:
            accelerator.load_state(str(tmp_path / "state"))
            start = STEPS // 2
        for step, batch in enumerate(data):
            if step < start:
                continue
            with accelerator.accumulate(net):
                accelerator.backward(net(**batch)["loss"])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if stop is not None and step + 1 == stop:
                accelerator.save_state(str(tmp_path / "state"))
                break
        return accelerator.unwrap_model(net)

    whole = run()
    run(stop=STEPS // 2)
    assert moved(whole)
    assert same_weights(whole, run(resume=True))


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    """`configure_optimizers`, a closure around each step, clipping, a checkpoint and `ckpt_path`."""
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = SGDSaI(self.named_parameters(), lr=0.3)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=2 * STEPS + 1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def fit(epochs: int, resume: Path | None = None) -> tuple[Lit, lightning.Trainer]:
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
            default_root_dir=tmp_path,
        )  # fmt: skip
        module = Lit()
        trainer.fit(module, torch.utils.data.DataLoader(Pairs(), batch_size=4), ckpt_path=resume)
        return module, trainer

    whole, _ = fit(2)
    half, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(2, tmp_path / "half.ckpt")
    assert moved(whole.net)
    assert not same_weights(whole, half)
    assert same_weights(whole, resumed)


def test_lightning_with_gradient_release(tmp_path: Path) -> None:
    """Its closure computes gradients inside `step`; the weights are those of training without release."""
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self, release: bool) -> None:
            super().__init__()
            self.net, self.release = Net(), release

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> SGDSaI:
            optimizer = SGDSaI(self.named_parameters(), lr=0.3)
            if self.release:
                gradient_release(self.net, optimizer)
            return optimizer

    def fit(release: bool) -> Lit:
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        module = Lit(release)
        trainer.fit(module, torch.utils.data.DataLoader(Pairs(), batch_size=4))
        return module

    ordinary, released = fit(False), fit(True)
    assert moved(ordinary.net)
    assert same_weights(ordinary, released)
    assert [param.grad is None for param in released.parameters()] == [True] * len(
        list(released.parameters())
    )
    assert any(param.grad is not None for param in ordinary.parameters())
