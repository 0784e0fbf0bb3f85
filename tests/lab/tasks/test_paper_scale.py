"""The paper's scale: a step of each real model, on small data of the real form."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from lab_commands import compare
from lab_data import picture, write_e2e, write_folders, write_gpt2, write_parquet
from PIL import Image

from sgd_sai.cli import main
from sgd_sai.lab import optimizers
from sgd_sai.lab.records import Record
from sgd_sai.lab.tasks import ALL, randaugment, vit

pytestmark = pytest.mark.filterwarnings("ignore:SGDSaI:UserWarning")  # LoRA's A


def stepped(task, problem, *cut):
    """The model after a step on a batch of which `cut` is left, and its number of parameters."""
    torch.manual_seed(0)
    model = problem.model()
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = optimizers.build("sgd-sai", model, 0.1, task.shrink)
    problem.loss(model, tuple(part[cut] for part in problem.batch(0, 0))).backward()
    optimizer.step()
    for old, param in zip(before, model.parameters(), strict=True):
        assert param.isfinite().all()
        # The bias of keys has no gradient but rounding's: softmax does not see it.
        assert not torch.equal(old, param) or param.dim() == 1
    held_out = next(iter(problem.validation))
    with torch.no_grad():
        assert problem.loss(model, tuple(part[cut] for part in held_out)).isfinite()
    return sum(param.numel() for param in model.parameters())


def test_cnn(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", 130)
    write_parquet(tmp_path / "test-0.parquet", 20)
    task = ALL["cnn-paper"]
    assert stepped(task, task.load(tmp_path), slice(4)) == pytest.approx(11.17e6, rel=1e-2)


def test_vit(tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "IMAGENET_BATCH", 2)
    write_folders(tmp_path / "train", 4, "JPEG")
    write_folders(tmp_path / "val", 2, "JPEG")
    task = ALL["vit-paper"]
    problem = task.load(tmp_path)
    inputs, classes = problem.batch(0, 0)
    assert (inputs.shape, classes.shape) == ((2, 3, 224, 224), (2, 2))
    assert torch.equal(inputs, problem.batch(0, 0)[0])
    assert not torch.equal(inputs, problem.batch(0, 1)[0])
    assert stepped(task, problem, slice(2)) == pytest.approx(21.67e6, rel=1e-2)


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_a_broken_picture_is_one_line_before_training(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vit, "IMAGENET_BATCH", 2)
    write_folders(tmp_path / "data" / "train", 4, "JPEG")
    write_folders(tmp_path / "data" / "val", 2, "JPEG")
    broken = tmp_path / "data" / "train" / "class1" / "3.JPEG"
    broken.write_bytes(broken.read_bytes()[:900] if content == "half" else content)
    given = compare(tmp_path / "out", "--scale", "paper", "--data", str(tmp_path / "data"), task="vit")
    assert main(given) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"sgd-sai: --data: cannot read {broken} as a picture: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_gpt(tmp_path):
    for part in ("train", "val"):
        (np.arange(3000) % 50257).astype(np.uint16).tofile(tmp_path / f"{part}.bin")
    task = ALL["gpt-paper"]
    assert stepped(task, task.load(tmp_path), slice(1), slice(32)) == 124_439_808


def test_lora(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    write_e2e(tmp_path / "e2e", valid=8, test=12)
    checkpoint = write_gpt2(tmp_path / "gpt2")
    monkeypatch.setenv("SGD_SAI_CHECKPOINT", str(checkpoint))
    out = tmp_path / "out"
    given = ["--scale", "paper", "--data", str(tmp_path / "e2e")]
    assert main(compare(out, *given, task="lora", steps=1)) == 0
    record = Record.read(out / "lora-paper-sgd-sai-0")
    assert record.result["val_loss"] > 0
    assert "12 sentences of test.txt to train on, 8 of valid.txt held out" in record.task["data"]
    assert record.task["data"].endswith(str(checkpoint))


def test_diffusion(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(3):
        picture(index, size=40).save(pictures / f"{index}.jpg")
    small_stable_diffusion(diffusers, tmp_path).save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setenv("SGD_SAI_CHECKPOINT", str(tmp_path / "checkpoint"))
    out = tmp_path / "out"
    given = ["--scale", "paper", "--data", str(pictures)]
    assert main(compare(out, *given, task="diffusion", steps=1)) == 0
    record = Record.read(out / "diffusion-paper-sgd-sai-0")
    assert record.result["val_loss"] > 0
    assert "2 pictures to train on, 1 held out" in record.task["data"]


def small_stable_diffusion(diffusers, folder):
    """A pipeline of Stable Diffusion's classes."""
    (folder / "vocab.json").write_text(
        json.dumps(
            {
                symbol: index
                for index, symbol in enumerate(
                    [
                        *(chr(code) + end for code in range(33, 127) for end in ("", "</w>")),
                        "<|startoftext|>",
                        "<|endoftext|>",
                    ]
                )
            }
        )
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=words,
        unet=diffusers.UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.mark.parametrize("task", ["lora", "diffusion"])
def test_a_checkpoint_that_is_none_is_one_line(task, tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    pytest.importorskip("diffusers")
    write_e2e(tmp_path / "data", train=8, valid=8)
    for index in range(2):
        picture(index).save(tmp_path / "data" / f"{index}.png")
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("SGD_SAI_CHECKPOINT", str(tmp_path / "none"))
    given = compare(tmp_path / "out", "--scale", "paper", "--data", str(tmp_path / "data"), task=task)
    assert main(given) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "none") in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("index", range(len(randaugment.DISTORTIONS)))
def test_a_distortion_keeps_size_and_kind(index):
    whole = picture(0, size=224)
    made = randaugment.DISTORTIONS[index](whole, np.random.default_rng(0))
    assert (made.size, made.mode) == (whole.size, whole.mode)
    same = np.array_equal(np.asarray(made), np.asarray(whole))
    # Noise of all values has full contrast; solarize does nothing at this magnitude.
    assert same == (index in (0, 5))


def test_a_translation_moves_by_a_hundred_pixels():
    whole = Image.new("RGB", (224, 224), (255, 0, 0))
    made = np.asarray(randaugment.DISTORTIONS[12](whole, np.random.default_rng(0)))
    assert (made == 128).all(-1).sum() == 100 * 224


def test_crops_lie_inside_and_differ():
    random = np.random.default_rng(0)
    boxes = [randaugment.crop(60, 40, random) for _ in range(50)]
    assert all(0 <= left < right <= 60 and 0 <= top < bottom <= 40 for left, top, right, bottom in boxes)
    assert all(one != other for one, other in pairwise(boxes))
    assert randaugment.crop(1000, 1, random) == (0, 0, 1000, 1)
