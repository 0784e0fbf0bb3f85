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


class GAN(nn.Module):
    """The generator's backward fills the discriminator's gradients too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.g, self.d = nn.Linear(4, 6), nn.Linear(6, 1)

    def discriminate(self, step: int) -> torch.Tensor:
        z = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return self.d(self.g(z).detach() + 1).square().mean()

    def generate(self, step: int) -> torch.Tensor:
        z = torch.randn(8, 4, generator=torch.Generator().manual_seed(1000 + step))
        return -100 * self.d(self.g(z)).mean()


def norms_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[dict[str, float]]:
    """The norms of the gradients that each step of the optimizer uses, as a hook of torch finds them."""
    used: list[dict[str, float]] = []

    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        used.append(
            {
                name: param.grad.norm().item()
                for name, param in model.named_parameters()
                if id(param) in held and param.grad is not None
            }
        )

    optimizer.register_step_pre_hook(before_step)
    return used


def recorded(recorder: GSNRRecorder, part: str) -> dict[int, dict[str, float]]:
    """Step → norms of one part of the model."""
    steps: dict[int, dict[str, float]] = {}
    for row in recorder.rows:
        if row["block"].startswith(part):
            assert row["block"] not in steps.setdefault(row["step"], {}), "recorded twice"
            steps[row["step"]][row["block"]] = row["norm"]
    return steps


def same_norms(found: dict[int, dict[str, float]], used: list[dict[str, float]], every: int) -> None:
    assert list(found) == list(range(1, len(used) + 1, every))
    for step, norms in found.items():
        assert norms == pytest.approx(used[step - 1], rel=1e-6)


def adversarial(
    model: GAN, opt_d: torch.optim.Optimizer, opt_g: torch.optim.Optimizer, rounds: int, per_g: int = 1
) -> None:
    for step in range(rounds):
        opt_d.zero_grad()
        model.discriminate(step).backward()
        opt_d.step()
        if step % per_g == 0:
            opt_g.zero_grad()
            model.generate(step).backward()
            opt_g.step()


@pytest.mark.parametrize(("every", "per_g"), [(1, 1), (2, 1), (10, 1), (2, 3)])
def test_a_gan_is_recorded_as_its_two_optimizers_step(every: int, per_g: int, tmp_path: Path) -> None:
    """Each optimizer's own parameters, with the gradients that its own steps used, by its own count."""
    model = GAN()
    opt_d, opt_g = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (model.d, model.g))
    used_d, used_g = norms_of(opt_d, model), norms_of(opt_g, model)
    recorder = GSNRRecorder(model, every=every, jsonl=tmp_path / "gsnr.jsonl")
    recorder.attach(opt_d)
    recorder.attach(opt_g)
    adversarial(model, opt_d, opt_g, 21, per_g)
    same_norms(recorded(recorder, "d"), used_d, every)
    same_norms(recorded(recorder, "g"), used_g, every)
    for line in map(json.loads, (tmp_path / "gsnr.jsonl").read_text().splitlines()):
        (part,) = {name[0] for name in line["norm"]}
        assert line["norm"] == recorded(recorder, part)[line["step"]]


def test_an_optimizer_that_is_attached_twice_is_recorded_once() -> None:
    model = net()
    optimizer = SGDSaI(model.parameters(), lr=0.1)
    recorder, other = GSNRRecorder(model, every=2), GSNRRecorder(model, every=3)
    first = recorder.attach(optimizer)
    learn(model, optimizer, 2)
    second = recorder.attach(optimizer)
    other.attach(optimizer)
    learn(model, optimizer, 3)
    assert recorder.columns()["step"] == [1] * 4 + [3] * 4 + [5] * 4
    assert other.columns()["step"] == [1] * 4
    first.remove()
    learn(model, optimizer, 1)
    assert recorder.step == 6
    second.remove()
    learn(model, optimizer, 1)
    assert (recorder.step, other.step) == (6, 5)


def test_parameters_that_come_later_are_recorded() -> None:
    """Frozen layers that are thawed, and layers that are added, come with `add_param_group`."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    recorder = GSNRRecorder(model, every=1)
    recorder.attach(optimizer)
    learn(model, optimizer, 1)
    assert [row["block"] for row in recorder.rows] == ["2.weight", "2.bias"]
    optimizer.add_param_group({"params": model[0].requires_grad_(True).parameters()})
    model.append(nn.Linear(2, 2))
    optimizer.add_param_group({"params": model[3].parameters()})
    learn(model, optimizer, 1)
    assert [row["block"] for row in recorder.rows[2:]] == [name for name, _ in model.named_parameters()]


def test_a_parameter_that_was_frozen_after_backward_was_used() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = GSNRRecorder(model, every=1)
    recorder.attach(optimizer)
    model(torch.randn(4, 6)).square().mean().backward()
    model.requires_grad_(False)
    optimizer.step()
    assert len(recorder.rows) == 4
    assert recorder.record() == []


def wrapped_by_accelerate(optimizer: torch.optim.Optimizer) -> Any:
    return pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(optimizer)


def wrapped_by_schedulefree(optimizer: torch.optim.Optimizer) -> Any:
    wrapper = pytest.importorskip("schedulefree").ScheduleFreeWrapper(optimizer, momentum=0.9)
    wrapper.train()
    return wrapper


@pytest.mark.parametrize("wrap", [wrapped_by_accelerate, wrapped_by_schedulefree])
def test_a_wrapped_optimizer(wrap: Any) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = wrap(optimizer)
    recorder = GSNRRecorder(model, every=2)
    recorder.attach(optimizer)
    recorder.attach(wrapper)  # the same one
    learn(model, wrapper, 4)
    assert recorder.columns()["step"] == [1] * 4 + [3] * 4
    assert recorder.step == 4
    recorder.count(wrapper)
    assert recorder.step == 5


def test_a_run_that_is_resumed() -> None:
    model = GAN()
    opt_d, opt_g = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (model.d, model.g))
    one = GSNRRecorder(model, every=4)
    one.attach(opt_d)
    one.step = 100  # also after `attach`
    adversarial(model, opt_d, opt_g, 4)
    assert (one.columns()["step"], one.step) == ([101, 101], 104)

    both = GSNRRecorder(model, every=4)
    both.step = 100
    both.attach(opt_d)
    both.attach(opt_g, step=20)
    adversarial(model, opt_d, opt_g, 5, per_g=5)
    assert sorted(recorded(both, "d")) == [101, 105]
    assert sorted(recorded(both, "g")) == [21]


def test_steps_that_are_counted_by_hand() -> None:
    model = GAN()
    opt_d, opt_g = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (model.d, model.g))
    recorder = GSNRRecorder(model, every=2)
    model.generate(0).backward()
    assert [[row["block"] for row in recorder.count(opt_d)] for _ in range(2)] == [["d.weight", "d.bias"], []]
    assert [row["block"] for row in recorder.count(opt_g)] == ["g.weight", "g.bias"]
    assert [len(recorder.count()) for _ in range(3)] == [4, 0, 4]
    assert recorder.step == 3


def test_what_cannot_be_attached() -> None:
    model = net()
    recorder = GSNRRecorder(model)
    with pytest.raises(ValueError, match=r"optimizer: given Linear; allowed: a torch\.optim\.Optimizer"):
        recorder.attach(nn.Linear(1, 1))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"step: given 2\.5; allowed: an integer ≥ 0"):
        recorder.attach(optimizer, step=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step: given -1; allowed: an integer ≥ 0"):
        recorder.step = -1
    recorder.attach(optimizer)
    with pytest.warns(UserWarning, match="GSNRRecorder: the optimizer holds none of the model's parameters"):
        optimizer.step()


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


def test_transformers_callback_records_what_the_optimizer_used(tmp_path: Path) -> None:
    """Its own parameters alone, not the scaled gradients that a step without clipping begins with."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from sgd_sai.integrations.transformers import GSNRCallback

    model = Net()
    optimizer = torch.optim.SGD(model.layers[2].parameters(), lr=0.1)
    used = norms_of(optimizer, model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True, max_grad_norm=0.0,
    )  # fmt: skip
    callback = GSNRCallback(every=1)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=Pairs(), optimizers=(optimizer, None), callbacks=[callback]
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")  # as for fp16, which needs a GPU
    trainer.train()
    assert callback.recorder is not None
    same_norms(recorded(callback.recorder, ""), used, 1)
    assert [set(norms) for norms in used] == [{"layers.2.weight", "layers.2.bias"}] * 3


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


@pytest.mark.filterwarnings("ignore")
def test_lightning_callback_with_the_two_optimizers_of_a_gan(tmp_path: Path) -> None:
    """Each with its own parameters and steps, also after a checkpoint and in a run that begins anew."""
    lightning = pytest.importorskip("lightning")
    from sgd_sai.integrations.lightning import GSNRCallback

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = GAN()

        def training_step(self, batch: torch.Tensor, step: int) -> None:
            opt_d, opt_g = self.optimizers()
            opt_d.zero_grad()
            self.manual_backward(self.net.discriminate(step))
            opt_d.step()
            if step % 3 == 0:
                opt_g.zero_grad()
                self.manual_backward(self.net.generate(step))
                opt_g.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            opt_d, opt_g = (torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.net.d, self.net.g))
            self.used = norms_of(opt_d, self), norms_of(opt_g, self)
            return [opt_d, opt_g]

    def fit(callback: Any, epochs: int, resume: Path | None = None) -> tuple[Any, Any]:
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        module = Lit()
        trainer.fit(module, torch.utils.data.DataLoader(range(6)), ckpt_path=resume)
        return module, trainer

    callback, resumed = GSNRCallback(every=2), GSNRCallback(every=2)
    module, trainer = fit(callback, 1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert callback.recorder is not None
    for part, used in zip(("net.d", "net.g"), module.used, strict=True):
        same_norms(recorded(callback.recorder, part), used, 2)
    assert set(recorded(callback.recorder, "net.g")) == {1}

    fit(resumed, 2, tmp_path / "half.ckpt")
    assert resumed.recorder is not None
    assert set(recorded(resumed.recorder, "net.d")) == {7, 9, 11}
    assert set(recorded(resumed.recorder, "net.g")) == {3}

    fit(resumed, 1)
    assert set(recorded(resumed.recorder, "net.d")) == {1, 3, 5}
