"""Tasks: their data are fixed, and the batch of a step depends on (seed, step) alone."""

from __future__ import annotations

import pytest
import torch

from sgd_sai.lab.tasks import ALL, SCALES, TASKS
from sgd_sai.lab.tasks.gpt import CONTEXT
from sgd_sai.lab.tasks.problem import epoch_indices


@pytest.fixture(params=TASKS)
def problem(request):
    return TASKS[request.param].load(None)


def test_a_task_is_called_what_the_registry_calls_it():
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert [task.name for task in ALL.values()] == list(ALL)
    for scale in ("small", "paper"):
        assert [task.name for task in SCALES[scale].values()] == [f"{name}-{scale}" for name in TASKS]


def test_a_batch_depends_on_seed_and_step_alone(problem, request):
    again = TASKS[request.node.callspec.params["problem"]].load(None)
    again.batch(7, 3)  # what was drawn before makes no difference
    for one, other in zip(problem.batch(1, 40), again.batch(1, 40), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(problem.batch(1, 40)[0], problem.batch(1, 41)[0])
    assert not torch.equal(problem.batch(1, 40)[0], problem.batch(2, 40)[0])


def test_the_loss_is_the_one_that_evaluation_averages(problem):
    torch.manual_seed(0)
    model = problem.model().eval()
    sizes = [batch[-1].numel() for batch in problem.validation]
    with torch.no_grad():
        losses = [problem.loss(model, batch).item() for batch in problem.validation]
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    found = problem.evaluate(model)
    assert found["val_loss"] == pytest.approx(mean, rel=1e-5)
    assert 0 <= found.get("val_accuracy", 0) <= 1


def test_every_gradient_is_finite_and_every_parameter_has_one(problem):
    torch.manual_seed(0)
    model = problem.model()
    problem.loss(model, problem.batch(0, 0)).backward()
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        assert param.grad is not None, name
        assert param.grad.isfinite().all(), name


def test_an_epoch_takes_each_sample_once():
    seen = [index for step in range(5) for index in epoch_indices(50, 10, 0, step)]
    assert sorted(seen) == list(range(50))
    assert list(epoch_indices(50, 10, 0, 5)) != list(epoch_indices(50, 10, 0, 0))


def test_images_are_held_out():
    problem = TASKS["cnn"].load(None)
    held_out = {image.numpy().tobytes() for images, _ in problem.validation for image in images}
    trained_on = {image.numpy().tobytes() for step in range(21) for image in problem.batch(0, step)[0]}
    assert len(trained_on) > 1300
    assert not trained_on & held_out


def test_text_of_a_folder_is_split_by_file(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(chr(65 + number) * 400)
    (tmp_path / "picture.bin").write_bytes(b"\xff\xfe\x00" * 300)
    problem = TASKS["gpt"].load(tmp_path)
    held_out = set(torch.cat([inputs.flatten() for inputs, _ in problem.validation]).tolist()) - {10}
    trained_on = {byte for step in range(60) for byte in problem.batch(0, step)[0].flatten().tolist()} - {10}
    assert len(held_out) == 2
    assert len(trained_on) == 18
    assert not trained_on & held_out


def test_a_target_is_the_byte_that_follows(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(bytes(32 + i % 90 for i in range(5000)))
    inputs, targets = TASKS["gpt"].load(file).batch(0, 0)
    assert inputs.shape == targets.shape == (16, CONTEXT)
    assert torch.equal((inputs - 32 + 1) % 90, targets - 32)
