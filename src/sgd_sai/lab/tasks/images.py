"""Images and their classes: scikit-learn's digits, the hub's parquet layout, folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from sgd_sai.lab.tasks import randaugment
from sgd_sai.lab.tasks.parquet import read
from sgd_sai.lab.tasks.problem import Batch, Problem, batches, epoch_indices, generator

SPLIT_SEED = 0
DIGITS_HELD_OUT = 450  # images, the same share of each digit
HELD_OUT = 0.1  # of a data set that has no test part
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPEG", ".JPG")
_READERS, _END = 32, 1024  # threads that look at files; bytes in which a picture ends, and what follows it
_COLUMNS = "img or image, and label"


@dataclass(frozen=True)
class Images:
    """Images, uint8 (n, channels, height, width) or float32 in [−1, 1], and classes, int64 (n,)."""

    train: Tensor
    train_classes: Tensor
    held: Tensor
    held_classes: Tensor
    source: str

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.train_classes.max()) + 1

    @property
    def data(self) -> str:
        """The description of the data in a run's record."""
        return f"{self.source}: {len(self.train)} images to train on, {len(self.held)} held out"


def digits() -> Images:
    """scikit-learn's 1797 grey images of 8 × 8, a fixed, stratified split."""
    images, classes = load_digits(return_X_y=True)
    grey = torch.from_numpy(images).float().div(8).sub(1).reshape(-1, 1, 8, 8)
    return _split(grey, torch.from_numpy(classes).long(), DIGITS_HELD_OUT, "scikit-learn's digits")


def parquet(path: Path, task: str) -> Images:
    """A data set in the layout of uoft-cs/cifar10 on the hub: parquet files with columns img and label.

    A folder with files train-* and test-* below it, or files without such a split, of which a tenth is held
    out. ValueError, one line, for anything else.
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise ValueError(
            f"--data: given {path}, which {'holds no parquet file' if path.exists() else 'does not exist'}; "
            f"allowed: a parquet file with columns {_COLUMNS}, or a folder of them"
        )
    parts = {part: [file for file in files if file.name.startswith(f"{part}-")] for part in ("train", "test")}
    if all(parts.values()):
        train, train_classes = _read_parquet(parts["train"], task)
        held, held_classes = _read_parquet(parts["test"], task)
        return Images(train, train_classes, held, held_classes, str(path))
    images, classes = _read_parquet(files, task)
    return _split(images, classes, HELD_OUT, str(path))


def folder(path: Path, size: int) -> Images:
    """Pictures in one folder per class, cut to their middle square and scaled to `size` × `size`.

    Either below train/ and val/, as ImageNet has it, or one set, of which a tenth is held out.
    """
    parts = {part: listing(path / part) for part in ("train", "val")}
    if all(classes for classes, _ in parts.values()):
        (_, train), (_, held) = parts["train"], parts["val"]
        return Images(*_read_pictures(train, size), *_read_pictures(held, size), str(path))
    _, files = listing(path)
    if not files:
        raise ValueError(
            f"--data: given {path}, which holds no pictures in one folder per class; allowed: "
            "CLASS/PICTURE.jpg or .png, or train/CLASS/PICTURE and val/CLASS/PICTURE"
        )
    return _split(*_read_pictures(files, size), HELD_OUT, str(path))


def listing(path: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """(names of the classes, (file, class) of each picture) of a folder with one folder per class."""
    names = sorted(each.name for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
    files = [
        (file, index)
        for index, name in enumerate(names)
        for file in sorted((path / name).iterdir())
        if file.suffix in SUFFIXES
    ]
    return names, files


def classification(
    model: Callable[[Images], nn.Module], images: Images, batch_size: int, augment: bool = False
) -> Problem:
    """The problem of telling the classes apart; `augment`: random crops after padding by 4, and flips."""

    def batch(seed: int, step: int) -> Batch:
        chosen = torch.from_numpy(epoch_indices(len(images.train), batch_size, seed, step))
        inputs = unit(images.train[chosen])
        if augment:
            inputs = _cropped_and_flipped(inputs, generator(seed, step, 1))
        return inputs, images.train_classes[chosen]

    if len(images.train) < batch_size:
        raise ValueError(f"--data: {images.data}; needed: at least a batch of {batch_size} to train on")
    held = list(batches(256, unit(images.held), images.held_classes))
    return Problem(model=lambda: model(images), batch=batch, validation=held, data=images.data)


def unit(images: Tensor) -> Tensor:
    """uint8 as float32 in [−1, 1]; float32 as it is."""
    return images.float().div(127.5).sub(1) if images.dtype == torch.uint8 else images


def _cropped_and_flipped(images: Tensor, random: np.random.Generator) -> Tensor:
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (4, 4, 4, 4), value=-1.0)  # black
    tops, lefts = (torch.from_numpy(random.integers(0, 9, count)) for _ in range(2))
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    flipped = torch.from_numpy(random.random(count) < 0.5)
    columns[flipped] = columns[flipped].flip(1)
    everyone = torch.arange(count)[:, None, None]
    return padded[everyone, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _split(images: Tensor, classes: Tensor, held_out: int | float, source: str) -> Images:
    try:
        train, held = train_test_split(
            np.arange(len(images)), test_size=held_out, random_state=SPLIT_SEED, stratify=classes
        )
    except ValueError as error:  # too few images, or one of a class
        raise ValueError(f"--data: {source} cannot be split: {error}") from None
    return Images(images[train], classes[train], images[held], classes[held], source)


def _read_parquet(files: list[Path], task: str) -> tuple[Tensor, Tensor]:
    pictures, classes = read(files, "images", task, _columns)
    if len({picture.shape for picture in pictures}) != 1:
        names = ", ".join(map(str, files))
        raise ValueError(f"--data: {names}: holds images of several sizes, or none; needed: one size")
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), classes.long()


def _columns(table: Any) -> tuple[list[NDArray[np.uint8]], Tensor]:
    import datasets

    image = next((name for name in ("img", "image") if name in table.column_names), None)
    if image is None or "label" not in table.column_names:
        raise ValueError(f"columns {', '.join(table.column_names)}; needed: {_COLUMNS}")
    table = table.cast_column(image, datasets.Image(mode="RGB"))
    return [np.asarray(picture) for picture in table[image]], torch.tensor(table["label"])


def _read_pictures(files: list[tuple[Path, int]], size: int) -> tuple[Tensor, Tensor]:
    pictures = torch.stack([picture(file, size) for file, _ in files])
    return pictures, torch.tensor([index for _, index in files])


def picture(file: Path, size: int, random: np.random.Generator | None = None) -> Tensor:
    """A picture file's middle square, or an augmented part of it by `random`: uint8 (3, size, size)."""
    try:
        with Image.open(file) as opened:
            whole = opened.convert("RGB")
        if random is None:
            fitted = ImageOps.fit(whole, (size, size), Image.Resampling.BICUBIC)
        else:
            fitted = randaugment.augmented(whole, size, random)
    except (OSError, ValueError, SyntaxError) as error:  # the last of a broken PNG
        raise ValueError(f"--data: cannot read {file} as a picture: {error}") from None
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def check_pictures(files: list[Path]) -> None:
    """ValueError, one line, for the first file that is no picture.

    Decoding all of ImageNet would take an hour: what begins and ends like a JPEG or PNG is taken for one.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        suspects = [
            file for file, whole in zip(files, readers.map(_looks_whole, files), strict=True) if not whole
        ]
    for file in suspects:
        picture(file, 8)


def _looks_whole(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            begin = opened.read(8)
            opened.seek(-min(_END, file.stat().st_size), os.SEEK_END)
            end = opened.read()
    except OSError:
        return False
    jpeg = begin.startswith(b"\xff\xd8") and b"\xff\xd9" in end
    return jpeg or (begin == b"\x89PNG\r\n\x1a\n" and b"IEND" in end)
