"""The random distortions of Beyer et al.'s ViT recipe, on pictures of Pillow.

RandAugment (arXiv 1909.13719) of two operations at magnitude 10 of 10, with the operations and magnitudes of
the implementation that the recipe used, after an Inception crop and a flip.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageOps

OPERATIONS = 2
_GREY = (128, 128, 128)  # of what was outside of the picture
_DEGREES, _SHEAR, _PIXELS = 30, 0.3, 100
_ENHANCED = 1.9  # 1 is the picture itself
_POSTERIZED, _ADDED, _CUT = 4, 110, 40  # bits; added to a dark value; half a side in pixels

Picture = Image.Image
Operation = Callable[[Picture, np.random.Generator], Picture]


def augmented(picture: Picture, size: int, random: np.random.Generator) -> Picture:
    """A random part of an RGB picture, `size` × `size`, in half of all cases mirrored, then distorted."""
    part = picture.resize((size, size), Image.Resampling.BILINEAR, box=crop(*picture.size, random))
    if random.random() < 0.5:
        part = ImageOps.mirror(part)
    for index in random.integers(0, len(DISTORTIONS), OPERATIONS):
        part = DISTORTIONS[index](part, random)
    return part


def crop(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom): 5 to 100 % of the area, 3 : 4 to 4 : 3; after ten misses, all of it."""
    for _ in range(10):
        area = random.uniform(0.05, 1) * width * height
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = (int(random.integers(0, room + 1)) for room in (width - across, height - down))
            return left, top, left + across, top + down
    return 0, 0, width, height


def _either(value: float, random: np.random.Generator) -> float:
    return value if random.random() < 0.5 else -value


def _affine(picture: Picture, *row_by_row: float) -> Picture:
    return picture.transform(picture.size, Image.Transform.AFFINE, row_by_row, fillcolor=_GREY)


def _cut_out(picture: Picture, random: np.random.Generator) -> Picture:
    x, y = random.integers(0, picture.width), random.integers(0, picture.height)
    cut = picture.copy()
    cut.paste(_GREY, (int(x) - _CUT, int(y) - _CUT, int(x) + _CUT, int(y) + _CUT))
    return cut


#: At magnitude 10 solarize would invert what is above 256: nothing.
DISTORTIONS: tuple[Operation, ...] = (
    lambda picture, _: ImageOps.autocontrast(picture),
    lambda picture, _: ImageOps.equalize(picture),
    lambda picture, _: ImageChops.invert(picture),
    lambda picture, random: picture.rotate(_either(_DEGREES, random), fillcolor=_GREY),
    lambda picture, _: ImageOps.posterize(picture, _POSTERIZED),
    lambda picture, _: picture,
    lambda picture, _: ImageEnhance.Color(picture).enhance(_ENHANCED),
    lambda picture, _: ImageEnhance.Contrast(picture).enhance(_ENHANCED),
    lambda picture, _: ImageEnhance.Brightness(picture).enhance(_ENHANCED),
    lambda picture, _: ImageEnhance.Sharpness(picture).enhance(_ENHANCED),
    lambda picture, random: _affine(picture, 1, _either(_SHEAR, random), 0, 0, 1, 0),
    lambda picture, random: _affine(picture, 1, 0, 0, _either(_SHEAR, random), 1, 0),
    lambda picture, random: _affine(picture, 1, 0, _either(_PIXELS, random), 0, 1, 0),
    lambda picture, random: _affine(picture, 1, 0, 0, 0, 1, _either(_PIXELS, random)),
    _cut_out,
    lambda picture, _: picture.point(lambda value: min(255, value + _ADDED) if value < 128 else value),
)
