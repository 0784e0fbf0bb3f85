"""Fine-tuning with LoRA: A, whose first gradient is zero, is trained; bases are made once and found again."""

from __future__ import annotations

import pytest
import torch
from lab_commands import compare

from sgd_sai.cli import main
from sgd_sai.lab import optimizers
from sgd_sai.lab.records import CHECKPOINT, PICTURES, TEXT, Record
from sgd_sai.lab.runs.runner import load
from sgd_sai.lab.tasks import TASKS, pretrained

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:SGDSaI:UserWarning")  # of A, whose first gradient is zero


def trained(name, steps):
    """(weights before, weights after, the optimizer) of a run of `name` on the lora task."""
    task, problem = TASKS["lora"], load("lora", None)
    torch.manual_seed(0)
    model = problem.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = optimizers.build(name, model, 1.0 if name == "sgd-sai" else 1e-3, task.shrink)
    for step in range(steps):
        optimizer.zero_grad()
        problem.loss(model, problem.batch(0, step)).backward()
        if step == 0:
            grads = {key: param.grad for key, param in model.named_parameters() if "lora_A" in key}
            assert all(not grad.any() for grad in grads.values())  # B is zero
        optimizer.step()
    return before, model.state_dict()


def test_sgd_sai_trains_a_although_its_first_gradient_is_zero():
    before, after = trained("sgd-sai", 4)
    moved = {key: not torch.equal(before[key], after[key]) for key in before}
    assert {key for key in moved if "lora_" in key} == {key for key in moved if moved[key]}
    assert sum("lora_A" in key for key in moved) == 4
    # A moves by more than its decay: λ η = κ, 1e-5 a step.
    for key in before:
        if "lora_A" in key:
            assert (after[key] / before[key] - 1).abs().max() > 1e-3


def test_every_optimizer_starts_from_the_same_adapters_of_a_seed():
    one, other = trained("sgd-sai", 0)[0], trained("adamw", 0)[0]
    assert all(torch.equal(one[key], other[key]) for key in one)
    torch.manual_seed(1)
    third = load("lora", None).model().state_dict()
    assert not any(torch.equal(one[key], third[key]) for key in one if "lora_A" in key)


def test_a_base_is_trained_once_and_the_same_again(tmp_path, monkeypatch):
    problem = TASKS["gpt"].load(None)
    monkeypatch.setenv("SGD_SAI_CACHE", str(tmp_path / "one"))
    first = pretrained.weights("gpt", problem, 0, 1e-3)
    (file,) = (tmp_path / "one").iterdir()
    at = file.stat().st_mtime_ns
    state = torch.get_rng_state()
    again = pretrained.weights("gpt", problem, 0, 1e-3)
    assert file.stat().st_mtime_ns == at
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setenv("SGD_SAI_CACHE", str(tmp_path / "two"))
    anew = pretrained.weights("gpt", problem, 0, 1e-3)
    assert pretrained.digest(first) == pretrained.digest(again) == pretrained.digest(anew)
    file.write_bytes(b"broken")
    monkeypatch.setenv("SGD_SAI_CACHE", str(tmp_path / "one"))
    with pytest.raises(ValueError, match="not a trained model"):
        pretrained.weights("gpt", problem, 0, 1e-3)


@pytest.mark.parametrize("task", ["lora", "diffusion"])
def test_a_run_keeps_what_is_trained_and_shows_what_it_makes(task, tmp_path):
    pytest.importorskip("diffusers")
    out = tmp_path / "out"
    assert main(compare(out, task=task, steps=4)) == 0
    folder = out / f"{task}-sgd-sai-0"
    assert Record.read(folder).result["val_loss"] > 0
    saved = torch.load(folder / CHECKPOINT, weights_only=True)["model"]
    assert all("lora_" in name for name in saved)
    page = (out / "report.html").read_text()
    assert (folder / PICTURES).is_file() == (task == "diffusion")
    assert (folder / TEXT).is_file() == (task == "lora")
    assert ('" src="data:image/png;base64,iVBOR' in page) == (task == "diffusion")
    assert (f'id="{task}-val_accuracy"' in page) == (task == "lora")
