"""Rendered characters: as many as asked, harder than digits, and made on the spot."""

from __future__ import annotations

import math
import string
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from zoo.datasets.splits import Samples, Splits

if TYPE_CHECKING:
    from PIL import ImageFont

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
CANVAS = 96
BASELINE, EM = 68, 72
MEAN, STD = 0.1595, 0.198
MAX_TURN = math.radians(12)
MAX_SHIFT = 0.08
SCALES = (0.85, 1.1)
NOISE = 0.05
BLOCK = 8 * len(CHARACTERS)


def glyphs(
    num_samples: int = 20_000,
    size: int = 32,
    seed: int = 0,
    num_validation: int = 50 * len(CHARACTERS),
    num_test: int = 50 * len(CHARACTERS),
) -> Splits:
    """Render 62 characters (0-9, A-Z, a-z) in 21 fonts, turned, scaled, shifted and noisy.

    Inputs are float32 [N, 1, size, size], light on dark, brought to about mean 0 and standard deviation 1 by constants.
    The characters are drawn in turn, so that the classes are balanced. The same arguments give the same bytes, and
    more samples begin with the fewer ones. The three splits come from random streams of their own.

    Characters that look alike stay classes of their own, and some images can't be told apart: `resnet20`, trained for 6
    epochs on 20,000 samples, reaches an accuracy of 0.993 on the test split; of its 23 errors 10 confuse 0 with O, 9
    confuse I with l, and the other 4 a letter with its capital.

    Args:
        num_samples: Number of training samples.
        size: Height and width in pixels, at least 8.
        seed: Seed of everything random.
        num_validation: Number of validation samples.
        num_test: Number of test samples.

    Raises:
        ValueError: The size or a number is too small.
    """
    if size < 8 or min(num_samples, num_validation, num_test) < 1:
        found = f"size {size} and {num_samples}, {num_validation}, {num_test} samples"
        raise ValueError(f"glyphs: found {found}; expected a size of at least 8 and at least one sample in each split")
    streams = enumerate((num_samples, num_validation, num_test))
    train, validation, test = (_draw_samples(number, size, 3 * seed + stream) for stream, number in streams)
    return Splits(train, validation, test, tuple(CHARACTERS))


def _draw_samples(number: int, size: int, seed: int) -> Samples:
    """Draw samples in whole blocks, so that the first ones do not depend on how many follow."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [_draw_block(size, generator) for _ in range(math.ceil(number / BLOCK))]
    inputs, targets = (torch.cat(parts)[:number] for parts in zip(*blocks, strict=True))
    return Samples(inputs, targets)


def _draw_block(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw every character equally often, each in a font and a pose of its own."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(BLOCK, generator=generator)

    targets = torch.randperm(BLOCK, generator=generator) % len(CHARACTERS)
    fonts = torch.randint(len(FONTS), (BLOCK,), generator=generator)
    turn, scale = between(-MAX_TURN, MAX_TURN), between(*SCALES)
    across, down = between(-MAX_SHIFT, MAX_SHIFT), between(-MAX_SHIFT, MAX_SHIFT)
    # grid_sample reads a source place for each target pixel: the map is the inverse of the pose, hence the division
    cosine, sine = turn.cos() / scale, turn.sin() / scale
    pose = torch.stack([cosine, -sine, -2 * across, sine, cosine, -2 * down], dim=1).reshape(BLOCK, 2, 3)
    # two source places per pixel and axis, averaged afterwards, against stairs at the edges
    grid = functional.affine_grid(pose, [BLOCK, 1, 2 * size, 2 * size], align_corners=False)
    warped = functional.grid_sample(_alphabet()[fonts, targets], grid, align_corners=False)
    ink = functional.avg_pool2d(warped, 2)
    dark, light = between(0.0, 0.2)[:, None, None, None], between(0.65, 1.0)[:, None, None, None]
    noise = NOISE * torch.randn(ink.shape, generator=generator)
    return (dark + (light - dark) * ink + noise - MEAN) / STD, targets


@cache
def _alphabet() -> Tensor:
    """Render every character once in every font, large; a tensor [fonts, characters, 1, CANVAS, CANVAS] in [0, 1]."""
    import matplotlib  # for its fonts alone
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(folder / f"{name}.ttf", EM) for name in FONTS]
    return torch.stack([torch.stack([_render(letter, font) for letter in CHARACTERS]) for font in fonts])


def _render(letter: str, font: ImageFont.FreeTypeFont) -> Tensor:
    """Render one character in the middle of the canvas; a common baseline keeps `c` smaller than `C`, `p` below `P`."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (CANVAS, CANVAS))
    left, _, right, _ = font.getbbox(letter, anchor="ls")
    ImageDraw.Draw(image).text(((CANVAS - left - right) / 2, BASELINE), letter, fill=255, font=font, anchor="ls")
    return torch.from_numpy(numpy.asarray(image, dtype=numpy.float32) / 255)[None]
