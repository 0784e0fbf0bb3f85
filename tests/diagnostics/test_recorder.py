"""GSNRRecorder: right numbers, nothing changed, and where they go."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sgd_sai import GSNRRecorder, SGDSaI, g_snr, measure


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda params: SGDSaI(params, lr=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.01),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    ],
)
def test_it_records_every_kth_step_of_any_optimizer_and_changes_nothing(make: Any, tmp_path: Path) -> None:
    plain, watched = net(), net()
    learn(plain, make(plain.parameters()), 7)
    recorder = GSNRRecorder(watched, every=3, jsonl=tmp_path / "gsnr.jsonl")
    optimizer = make(watched.parameters())
    handle = recorder.attach(optimizer)
    learn(watched, optimizer, 7)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))
    columns = recorder.columns()
    assert sorted(set(columns["step"])) == [1, 4, 7]
    assert columns["block"][:4] == [name for name, _ in watched.named_parameters()]
    assert {len(column) for column in columns.values()} == {12}

    # The last record is that of the gradients that are still there.
    for row, param in zip(recorder.rows[-4:], watched.parameters(), strict=True):
        assert row["gsnr"] == g_snr(*measure([[param.grad]]))
        assert row["norm"] == pytest.approx(param.grad.norm().item(), rel=1e-6)
        assert row["sigma"] == pytest.approx(param.grad.std(correction=0).item(), rel=1e-5)

    lines = [json.loads(line) for line in (tmp_path / "gsnr.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 7]
    assert lines[-1]["gsnr"] == {row["block"]: row["gsnr"] for row in recorder.rows[-4:]}
    assert set(lines[0]) == {"step", "gsnr", "norm", "sigma"}

    handle.remove()
    learn(watched, optimizer, 3)
    assert recorder.step == 7


def test_the_optimizer_scales_by_what_is_recorded_at_the_first_step() -> None:
    model = net()
    optimizer = SGDSaI(model.parameters(), lr=0.1)
    recorder = GSNRRecorder(model)
    recorder.attach(optimizer)
    learn(model, optimizer, 1)
    for row, param in zip(recorder.rows, model.parameters(), strict=True):
        assert row["gsnr"] == optimizer.state[param]["gsnr"]


def test_blocks_without_a_gradient_are_left_out() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    recorder = GSNRRecorder(model, every=1)
    model(torch.randn(4, 6)).square().mean().backward()
    model[0].bias.grad = None
    model[2].bias.grad.zero_()
    assert [row["block"] for row in recorder.record()] == ["2.weight"]


def test_tensorboard(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = net()
    writer = tensorboard.SummaryWriter(str(tmp_path))
    recorder = GSNRRecorder(model, every=2, writer=writer)
    optimizer = SGDSaI(model.parameters(), lr=0.1)
    recorder.attach(optimizer)
    learn(model, optimizer, 4)
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = events.Scalars("gsnr/0.weight")
    assert [event.step for event in scalars] == [1, 3]
    assert scalars[0].value == pytest.approx(recorder.rows[0]["gsnr"], rel=1e-6)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_every_must_be_a_positive_integer(every: Any) -> None:
    with pytest.raises(ValueError, match=f"every: given {every}; allowed: an integer ≥ 1"):
        GSNRRecorder(net(), every=every)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"jsonl: cannot write to .*No such file"):
        GSNRRecorder(net(), jsonl=tmp_path / "none" / "gsnr.jsonl")


class Pairs(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.randn(6, generator=torch.Generator().manual_seed(index))
        return {"x": x, "labels": x[:2]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = net()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.mse_loss(self.layers(x), labels)}


def test_transformers_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON Lines, TensorBoard, W&B; it goes on counting after a resume."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from sgd_sai.integrations.transformers import GSNRCallback

    logged: list[dict[str, float]] = []
    run = types.SimpleNamespace(run=object(), log=logged.append)  # W&B's own needs a server
    monkeypatch.setitem(sys.modules, "wandb", run)

    def trainer(callback: Any, steps: int) -> Any:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=4, save_steps=3,
            report_to=["tensorboard"], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        chosen = (SGDSaI, {"lr": 0.1})
        return transformers.Trainer(
            model=Net(), args=arguments, train_dataset=Pairs(), optimizer_cls_and_kwargs=chosen,
            callbacks=[callback],
        )  # fmt: skip

    trainer(GSNRCallback(every=2), 3).train()
    resumed = GSNRCallback(every=2)
    trainer(resumed, 6).train(resume_from_checkpoint=True)
    lines = [json.loads(line) for line in (tmp_path / "gsnr.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 5]
    assert resumed.recorder is not None
    assert lines[-1]["gsnr"] == {row["block"]: row["gsnr"] for row in resumed.recorder.rows}
    assert [line["train/global_step"] for line in logged] == [1, 3, 5]
    assert logged[-1]["gsnr/layers.0.weight"] == lines[-1]["gsnr"]["layers.0.weight"]
    assert list((tmp_path / "runs" / "gsnr").glob("events*"))


@pytest.mark.filterwarnings("ignore")
def test_lightning_callback(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    from sgd_sai.integrations.lightning import GSNRCallback

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return SGDSaI(self.parameters(), lr=0.1)

    logger, callback = CSVLogger(tmp_path), GSNRCallback(every=2)
    lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, callbacks=[callback], log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(Lit(), torch.utils.data.DataLoader(Pairs(), batch_size=4))  # fmt: skip
    assert callback.recorder is not None
    assert [row["step"] for row in callback.recorder.rows[::4]] == [1, 3, 5]
    header = next(Path(logger.log_dir).glob("metrics.csv")).read_text().splitlines()[0]
    assert "gsnr/net.layers.0.weight" in header
