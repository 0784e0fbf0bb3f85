"""Data of one's own: what is read, and one line for what cannot be."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_commands import compare
from lab_data import picture, write_e2e, write_folders, write_gpt2, write_parquet, write_texts

from sgd_sai.cli import main
from sgd_sai.lab.records import Record
from sgd_sai.lab.runs.runner import load
from sgd_sai.lab.runs.training import Training
from sgd_sai.lab.tasks import ALL, SCALES, TASKS, gpt, images, lora


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


def test_tokens_out_of_range_are_one_line(tmp_path):
    for part, value in (("train", 1), ("val", 50257)):
        np.full(5000, value, np.uint16).tofile(tmp_path / f"{part}.bin")
    with pytest.raises(ValueError, match=r"val\.bin holds 50257; needed: GPT-2's tokens, less than 50257"):
        gpt.tokens(tmp_path)


def test_a_folder_of_parquet_with_text(tmp_path):
    for index in range(2):
        write_texts(tmp_path / f"{index}.parquet", [f"row {row} of {index}, é" for row in range(40)] + [None])
    problem = ALL["gpt"].load(tmp_path)
    text = "\n".join(f"row {row} of 0, é" for row in range(40)).encode()
    assert f"{len(text)} bytes to train on, {len(text)} held out" in problem.data


def test_the_small_gpt_learns_its_tokens_from_the_text(tmp_path):
    """A small text makes few tokens; the model has GPT-2's number of them all the same."""
    words = np.random.default_rng(0).integers(0, 900, 40_000)
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"n{word}ö" for word in words))
    problem = ALL["gpt-small"].load(file)
    inputs, targets = problem.batch(0, 0)
    assert inputs.shape == targets.shape == (32, 1024)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    start = problem.decode(problem.prompt)
    assert start.strip("\ufffd") in file.read_text()
    assert len(start.encode()) > 2 * len(problem.prompt)  # tokens are longer than bytes


@pytest.mark.parametrize(
    ("counts", "train", "held_out"),
    [
        ({"valid": 9, "test": 12}, "test", "valid"),
        ({"valid": 12, "test": 9}, "valid", "test"),
        ({"train": 9, "valid": 10, "test": 12}, "train", "valid"),
        ({"train": 9, "test": 12}, "train", "test"),
    ],
)
def test_parts_of_e2e(counts, train, held_out, tmp_path):
    write_e2e(tmp_path / "e2e", **counts)
    assert [file.stem for file in lora.e2e(tmp_path / "e2e")] == [train, held_out]


def test_the_tiny_lora_on_e2e(tmp_path):
    pytest.importorskip("peft")
    write_e2e(tmp_path / "e2e", valid=9, test=12)
    problem = ALL["lora"].load(tmp_path / "e2e")
    assert "test.txt and valid.txt" in problem.data
    held_out = (tmp_path / "e2e" / "valid.txt").read_bytes()
    assert bytes(problem.prompt) == held_out[: len(problem.prompt)]


def wrong(tmp_path):
    """Name of the case → (task, path, words of the message)."""
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "corrupt.parquet").write_bytes(b"PAR1" + bytes(500) + b"PAR1")
    write_parquet(tmp_path / "unlabelled.parquet", 4, label=None)
    write_parquet(tmp_path / "few.parquet", 20)
    pictures = tmp_path / "broken" / "cat"
    pictures.mkdir(parents=True)
    (pictures / "one.png").write_bytes(b"no picture")
    (tmp_path / "blobs").write_bytes(b"\xff\xfe" * 4000)
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
        "no-text": ("gpt", tmp_path / "unlabelled.parquet", ["as text", "columns img; needed: text"]),
        "corrupt-text": ("gpt", tmp_path / "corrupt.parquet", ["as text"]),
        "numbers": ("lora", tmp_path / "blobs", ["0 bytes of text"]),
        "images": ("diffusion", tmp_path / "corrupt.parquet", ["as images"]),
        "text": ("lora", tmp_path / "none", ["does not exist"]),
    }


CASES = (
    *("missing", "folder", "empty", "corrupt", "column", "few", "classes", "pictures", "no-pictures"),
    *("no-text", "corrupt-text", "numbers", "images", "text"),
)


@pytest.mark.parametrize("case", CASES)
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
    ("task", "files", "words"),
    [
        ("cnn", {"train-0.parquet": b"", "test-0.parquet": b""}, ["as images"]),
        ("vit", {"train/a/0.JPEG": b"x"}, ["needs ImageNet"]),
        ("gpt", {"train.bin": b"", "val.bin": b""}, ["more than 2048 tokens"]),
        ("lora", {"train.txt": b"no bars\n" * 9, "valid.txt": b""}, ["0 lines of record||sentence"]),
        ("lora", {"train.txt": b"\xff||\n" * 9, "valid.txt": b""}, ["cannot read", "train.txt"]),
        ("diffusion", {"one.png": b"x"}, ["two or more pictures"]),
    ],
)
def test_what_cannot_be_read_at_the_papers_scale(task, files, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SGD_SAI_CHECKPOINT", str(write_gpt2(tmp_path / "gpt2")))
    for name, content in files.items():
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    given = ["--scale", "paper", "--data", str(tmp_path / "data")]
    capsys.readouterr()
    assert main(compare(tmp_path / "out", *given, task=task, steps=2)) == 2
    message = capsys.readouterr().err
    assert message.startswith("sgd-sai: --data: ")
    assert message.count("\n") == 1, message
    assert [word for word in [str(tmp_path / "data"), *words] if word not in message] == []
    assert not (tmp_path / "out").exists()


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
    running = Training.__new__(Training)
    running.problem, running.called, running.device = problem, model, torch.device("cpu")
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


@pytest.mark.skipif("SGD_SAI_DATA" not in os.environ, reason="SGD_SAI_DATA names no folder with e2e/")
def test_e2e(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setenv("SGD_SAI_CHECKPOINT", str(write_gpt2(tmp_path / "gpt2")))
    problem = load("lora-paper", str(Path(os.environ["SGD_SAI_DATA"], "e2e")))
    assert "4693 sentences of test.txt to train on, 4672 of valid.txt held out" in problem.data
