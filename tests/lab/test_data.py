"""Data of one's own: what is read, and one line for what cannot be."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_commands import compare
from PIL import Image

from sgd_sai.cli import main
from sgd_sai.lab.records import Record
from sgd_sai.lab.runner import _Running, load
from sgd_sai.lab.tasks import ALL, SCALES, TASKS, gpt, images

datasets = pytest.importorskip("datasets")


def picture(seed, size=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def write_parquet(file, count, **columns):
    """A file in the layout of uoft-cs/cifar10: img, an image, and label, a class."""
    labels = [index % 2 for index in range(count)]
    content = {"img": [picture(index) for index in range(count)], "label": labels, **columns}
    features = datasets.Features(
        {
            name: datasets.Image() if name == "img" else datasets.Value("int64")
            for name in content
            if content[name] is not None
        }
    )
    table = {name: content[name] for name in features}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(file))


def write_folders(root, count):
    for index in range(count):
        folder = root / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(index, size=40).save(folder / f"{index}.png")


@pytest.fixture
def cifar(tmp_path):
    folder = tmp_path / "cifar"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00001.parquet", 130)
    write_parquet(folder / "test-00000-of-00001.parquet", 20)
    return folder


def test_images_come_out_of_parquet_as_they_went_in(cifar):
    read = images.parquet(cifar, "cnn")
    assert read.train.shape == (130, 3, 32, 32)
    assert read.held.shape == (20, 3, 32, 32)
    assert torch.equal(read.train[7], torch.from_numpy(np.array(picture(7))).permute(2, 0, 1))
    assert read.train_classes[:3].tolist() == [0, 1, 0]
    alone = images.parquet(cifar / "train-00000-of-00001.parquet", "cnn")
    assert (len(alone.train), len(alone.held)) == (117, 13)


def test_crops_and_flips_depend_on_seed_and_step_alone(cifar):
    problem = ALL["cnn-small"].load(cifar)
    one, again, other = (problem.batch(0, step)[0] for step in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (128, 3, 32, 32)
    assert one.min() >= -1
    assert one.max() <= 1


def test_an_uncropped_unflipped_image_is_the_image():
    class Still:
        def integers(self, low, high, count):
            return np.full(count, 4)  # the middle of the padding

        def random(self, count):
            return np.ones(count)

    whole = torch.rand(3, 2, 8, 8)
    assert torch.equal(images._cropped_and_flipped(whole, Still()), whole)


def test_a_run_on_images_of_ones_own(cifar, tmp_path):
    out = tmp_path / "out"
    assert main(compare(out, "--data", str(cifar), steps=2)) == 0
    assert Record.read(out / "cnn-sgd-sai-0").task["data"].startswith(f"{cifar}: 130 images")


def test_a_run_on_folders_of_pictures(tmp_path):
    write_folders(tmp_path / "pictures", 80)
    out = tmp_path / "out"
    assert main(compare(out, "--data", str(tmp_path / "pictures"), task="vit", steps=2)) == 0
    assert "72 images to train on, 8 held out" in Record.read(out / "vit-sgd-sai-0").task["data"]


def test_train_and_val_are_kept_apart(tmp_path):
    write_folders(tmp_path / "train", 6)
    write_folders(tmp_path / "val", 4)
    read = images.folder(tmp_path, size=16)
    assert (read.train.shape, read.held.shape) == ((6, 3, 16, 16), (4, 3, 16, 16))


def test_tokens(tmp_path):
    for part, count in (("train", 9000), ("val", 5000)):
        (np.arange(count) % 50257).astype(np.uint16).tofile(tmp_path / f"{part}.bin")
    problem = gpt.tokens(tmp_path)
    inputs, targets = problem.batch(0, 0)
    assert inputs.shape == (480, 1024)
    assert torch.equal(inputs + 1, targets)
    assert "9000 tokens to train on, 5000 held out" in problem.data


def wrong(tmp_path):
    """Name of the case → (task, path, words of the message)."""
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "corrupt.parquet").write_bytes(b"PAR1" + bytes(500) + b"PAR1")
    write_parquet(tmp_path / "unlabelled.parquet", 4, label=None)
    write_parquet(tmp_path / "few.parquet", 20)
    pictures = tmp_path / "broken" / "cat"
    pictures.mkdir(parents=True)
    (pictures / "one.png").write_bytes(b"no picture")
    return {
        "missing": ("cnn", tmp_path / "none", ["does not exist"]),
        "folder": ("cnn", tmp_path / "broken", ["holds no parquet"]),
        "empty": ("cnn", tmp_path / "empty.parquet", ["cannot read", "empty.parquet"]),
        "corrupt": ("cnn", tmp_path / "corrupt.parquet", ["cannot read", "corrupt.parquet"]),
        "column": ("cnn", tmp_path / "unlabelled.parquet", ["columns img", "label"]),
        "few": ("cnn", tmp_path / "few.parquet", ["at least a batch of 64"]),
        "classes": ("diffusion", tmp_path / "few.parquet", ["needed: 32"]),
        "pictures": ("vit", tmp_path / "broken", ["one.png", "as a picture"]),
        "no-pictures": ("vit", tmp_path / "none", ["one folder per class"]),
        "text": ("lora", tmp_path / "none", ["does not exist"]),
    }


@pytest.mark.parametrize(
    "case",
    ["missing", "folder", "empty", "corrupt", "column", "few", "classes", "pictures", "no-pictures", "text"],
)
def test_what_cannot_be_read_is_one_line(case, tmp_path, capsys):
    task, path, words = wrong(tmp_path)[case]
    capsys.readouterr()
    assert main(compare(tmp_path / "out", "--data", str(path), task=task, steps=2)) == 2
    message = capsys.readouterr().err
    assert message.startswith("sgd-sai: --data: ")
    assert message.count("\n") == 1, message
    assert [word for word in [str(path), *words] if word not in message] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", [task.name for scale in ("small", "paper") for task in SCALES[scale].values()]
)
def test_a_scale_without_data_of_its_own_asks_for_them(name):
    if name in ("gpt-small", "lora-small", "diffusion-small"):
        return  # they have the tiny scale's
    with pytest.raises(ValueError, match=r"--data: .* needs .*") as raised:
        ALL[name].load(None)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scale", "huge"], ["--scale", "'huge'", "tiny, small, paper"]),
        (["--data", "."], ["--data", "3 tasks"]),
        (["--task", "gpt", "--scale", "small", "--optimizer", "sgd"], ["tune --task gpt --scale small"]),
    ],
)
def test_scales_on_the_command_line(arguments, words, tmp_path, capsys):
    assert main(["compare", "--out", str(tmp_path / "out"), *arguments]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == []


def test_a_small_gpt_trains_in_parts_and_in_bf16():
    """One step of what a GPU is meant for: the gradient of two parts is that of the whole batch."""
    problem = TASKS["gpt"].load(None)
    torch.manual_seed(0)
    model = problem.model()
    problem.loss(model, problem.batch(0, 0)).backward()
    whole = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    running = _Running.__new__(_Running)
    running.problem, running.model, running.device = problem, model, torch.device("cpu")
    for bf16, tolerance in ((False, 1e-5), (True, 5e-2)):
        running.task = replace(TASKS["gpt"], accumulate=2, bf16=bf16)
        loss = running._backward(problem.batch(0, 0))
        assert loss == pytest.approx(problem.loss(model, problem.batch(0, 0)).item(), rel=tolerance)
        for param, grad in zip(model.parameters(), whole, strict=True):
            assert (param.grad - grad).norm() <= tolerance * grad.norm()
        model.zero_grad()


@pytest.mark.skipif("SGD_SAI_DATA" not in os.environ, reason="SGD_SAI_DATA names no folder with cifar10/")
def test_cifar10():
    problem = load("cnn", str(Path(os.environ["SGD_SAI_DATA"], "cifar10")))
    assert "50000 images to train on, 10000 held out" in problem.data
    inputs, classes = problem.batch(0, 0)
    assert inputs.shape == (64, 3, 32, 32)
    assert set(classes.tolist()) <= set(range(10))
