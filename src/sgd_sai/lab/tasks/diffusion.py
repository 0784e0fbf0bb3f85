"""Diffusion: a UNet learns to denoise nine classes of images, then LoRA fine-tunes it to the tenth."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sgd_sai.lab.tasks import images, lora, pretrained
from sgd_sai.lab.tasks.images import Images
from sgd_sai.lab.tasks.problem import (
    Batch,
    Problem,
    Task,
    batches,
    epoch_indices,
    generator,
    needs,
    on_device_of,
)

HELD_OUT_CLASS = 9
TIMES = 1000  # steps of the noise
_JUDGED = 8  # noises and times for each held-out image
_SAMPLES, _SAMPLE_STEPS = 16, 50
#: What LoRA adapts: the projections of attention, and the residual blocks' convolutions.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]


@dataclass(frozen=True)
class Denoising(Problem):
    """The problem of telling the noise in a noisy image; the loss is the mean square error.

    Attributes:
        shape: channels, height, width of an image.
    """

    shape: tuple[int, int, int] = (1, 8, 8)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean square error of the predicted noise, a 0-dim tensor."""
        *inputs, noise = on_device_of(model, batch)
        return F.mse_loss(model(*inputs).sample.float(), noise)

    def judged(self, batch: Batch) -> int:
        """Elements of the noise."""
        return batch[-1].numel()

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """{"val_loss": mean square error} on held-out images with fixed noise and times."""
        model.eval()
        errors, count = 0.0, 0
        for batch in self.validation:
            size = batch[-1].numel()
            errors += self.loss(model, batch).item() * size
            count += size
        model.train()
        return {"val_loss": errors / count}

    @torch.no_grad()
    def samples(self, model: nn.Module) -> bytes:
        """Sixteen images made from fixed noise in 50 steps of DDIM, as a PNG."""
        device = next(model.parameters()).device
        scheduler = _diffusers().DDIMScheduler(**_NOISE)
        scheduler.set_timesteps(_SAMPLE_STEPS)
        made = torch.randn(_SAMPLES, *self.shape, generator=torch.Generator().manual_seed(0)).to(device)
        model.eval()
        for time in scheduler.timesteps:
            made = scheduler.step(model(made, time.to(device)).sample, time, made).prev_sample
        model.train()
        rows = made.clamp(-1, 1).add(1).mul(127.5).byte().cpu().reshape(2, _SAMPLES // 2, *self.shape)
        channels, height, width = self.shape
        sheet = rows.permute(0, 3, 1, 4, 2).reshape(2 * height, _SAMPLES // 2 * width, channels).numpy()
        shown = Image.fromarray(np.ascontiguousarray(sheet.squeeze(-1) if channels == 1 else sheet))
        content = io.BytesIO()
        scale = max(1, 32 // height)
        shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST).save(
            content, "PNG"
        )
        return content.getvalue()


_NOISE = {"num_train_timesteps": TIMES, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}


def unet(data: Images, widths: tuple[int, ...], layers: int) -> nn.Module:
    """A UNet with attention in all but its outermost level."""
    _, channels, size, _ = data.train.shape
    inner = len(widths) - 1
    network: nn.Module = _diffusers().UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=layers,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * inner),
        up_block_types=(*["AttnUpBlock2D"] * inner, "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    )
    return network


def of_class(
    data: Images, keep: Callable[[Tensor], Tensor], made: Callable[[], nn.Module], size: int
) -> Denoising:
    """Denoising of the images whose class `keep` keeps."""
    train = images.unit(data.train[keep(data.train_classes)])
    held = images.unit(data.held[keep(data.held_classes)]).repeat(_JUDGED, 1, 1, 1)
    if len(train) < size or not len(held):
        raise ValueError(f"--data: {data.data}: too few of a class; needed: {size} or more")
    scheduler = _diffusers().DDPMScheduler(**_NOISE)

    def noisy(clean: Tensor, random: np.random.Generator) -> Batch:
        noise = torch.from_numpy(random.standard_normal(clean.shape, dtype=np.float32))
        times = torch.from_numpy(random.integers(0, TIMES, len(clean)))
        return scheduler.add_noise(clean, noise, times), times, noise

    def batch(seed: int, step: int) -> Batch:
        chosen = torch.from_numpy(epoch_indices(len(train), size, seed, step))
        return noisy(train[chosen], generator(seed, step, 1))

    return Denoising(
        model=made,
        batch=batch,
        validation=list(batches(256, *noisy(held, generator(0, 0, 2)))),
        data=f"{data.source}, {len(train)} images to train on, {len(held)} noisy ones held out",
        shape=(train.shape[1], train.shape[2], train.shape[3]),
    )


def _own(
    path: Path | None, name: str, widths: tuple[int, ...], layers: int, size: int, steps: int, lr: float
) -> Problem:
    """All digits but one, then that; with `path`, all classes of an image data set but its last, then it."""
    _diffusers()
    data = images.digits() if path is None else images.parquet(path, "diffusion")
    last = HELD_OUT_CLASS if path is None else data.classes - 1

    def made() -> nn.Module:
        return unet(data, widths, layers)

    before = of_class(data, lambda classes: classes != last, made, size)
    after = of_class(data, lambda classes: classes == last, made, size)
    weights = pretrained.weights(name, before, steps, lr)

    def model() -> nn.Module:
        base = made()
        base.load_state_dict(weights)
        return lora.adapted(base, TARGETS, alpha=2 * lora.RANK)

    described = f"{after.data}, of class {last}; base trained on the others, {pretrained.digest(weights)}"
    return Denoising(model, after.batch, after.validation, described, after.shape)


def _paper(path: Path | None) -> Problem:
    """Stable Diffusion 1.5 and one concept: a folder of a few pictures, learned under one prompt."""
    diffusers = _diffusers()
    files = (
        [file for file in sorted(path.iterdir()) if file.suffix in images.SUFFIXES]
        if path and path.is_dir()
        else []
    )
    if len(files) < 2:
        raise ValueError(
            f"--data: given {path}; this scale of diffusion needs a folder of two or more pictures "
            "of one concept"
        )
    source = pretrained.checkpoint(STABLE_DIFFUSION)
    pipeline = pretrained.loaded(
        diffusers.StableDiffusionPipeline.from_pretrained, source, safety_checker=None
    )
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    pictures = images.unit(torch.stack([images.picture(file, size) for file in files]))
    with torch.no_grad():
        latents = pipeline.vae.encode(pictures).latent_dist.mean * pipeline.vae.config.scaling_factor
        words, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
    scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    train, held = latents[:-1], latents[-1:].repeat(_JUDGED, 1, 1, 1)

    def noisy(clean: Tensor, random: np.random.Generator) -> Batch:
        noise = torch.from_numpy(random.standard_normal(clean.shape, dtype=np.float32))
        times = torch.from_numpy(random.integers(0, TIMES, len(clean)))
        return scheduler.add_noise(clean, noise, times), times, words.expand(len(clean), -1, -1), noise

    def batch(seed: int, step: int) -> Batch:
        chosen = torch.from_numpy(epoch_indices(len(train), 1, seed, step))
        return noisy(train[chosen], generator(seed, step, 1))

    def model() -> nn.Module:
        base = pretrained.loaded(diffusers.UNet2DConditionModel.from_pretrained, source, subfolder="unet")
        return lora.adapted(base, ["to_q", "to_k", "to_v", "to_out.0"], alpha=lora.RANK)

    data = f"{path}: {len(train)} pictures to train on, {len(files) - len(train)} held out; base {source}"
    return _Latents(model, batch, [noisy(held, generator(0, 0, 2))], data)


class _Latents(Denoising):
    """Denoising of latents under a prompt; its pictures are made by the user's own pipeline."""

    def samples(self, model: nn.Module) -> None:  # type: ignore[override]
        """None."""
        return


STABLE_DIFFUSION, PROMPT = "stable-diffusion-v1-5/stable-diffusion-v1-5", "a photo of sks"


def _diffusers() -> Any:
    try:
        import diffusers
    except ModuleNotFoundError:
        raise needs("diffusers", "diffusion") from None
    return diffusers


TINY = Task(
    name="diffusion",
    title="Diffusion, LoRA to a new digit",
    about="rank 4 on the attention and convolutions of a UNet, 32 and 64 wide, batch 32",
    metric="val_loss",
    unit="mean square error of the noise",
    steps=200,
    shrink=1e-5,
    clip=1.0,
    load=partial(_own, name="unet", widths=(32, 64), layers=1, size=32, steps=600, lr=2e-3),
)
SMALL = Task(
    name="diffusion-small",
    title="Diffusion, LoRA to a new class",
    about="rank 4 on the attention and convolutions of a UNet, 128 to 256 wide, batch 128, bf16",
    metric="val_loss",
    unit="mean square error of the noise",
    steps=1000,
    shrink=1e-5,
    clip=1.0,
    load=partial(_own, name="unet-small", widths=(128, 256, 256), layers=2, size=128, steps=5000, lr=5e-4),
    bf16=True,
)
#: The paper shows pictures at lr 0.1 and says no more: batch 1, 1000 steps, rank 4, the projections of
#: attention and one picture held out are chosen. Its checkpoint is one of Stable Diffusion 1.5.
PAPER = Task(
    name="diffusion-paper",
    title="Stable Diffusion 1.5, LoRA to one concept",
    about="rank 4 on the attention of Stable Diffusion 1.5, 512 × 512, batch 1",
    metric="val_loss",
    unit="mean square error of the noise",
    steps=1000,
    shrink=1e-5,
    clip=1.0,
    load=_paper,
)
