"""Words, rendered: the label is what was drawn, so none is wrong. Which word is for what is fixed by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from crnn import HEIGHT
from ctc import encode
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from secateur import Samples, Splits
from zoo.published_files import PublishedFile, fetch

WIDTH = 192
LONGEST = 9
WORD_LIST = PublishedFile(
    package="xkcdpass",
    version="1.30.0",
    archive_sha256="3653a4a1e13de230808bcaf11f8c04207a5d3df8e2f7e1de698e11c262b5b797",
    path="xkcdpass/static/eff-long",
    sha256="6d557f0693958fb5e650b68b5bee585eb82cf4da32965505c789e924743bc522",
    licence="the list is the EFF's, CC BY 3.0 US; the package BSD",
)
NUM_WORDS = {"train": 3000, "validation": 500, "test": 2000}
"""Words of each split; half of them are drawn clean, half degraded."""
FONTS = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic")),
)
"""All that matplotlib ships with Latin letters, so that no font of the machine counts."""


@dataclass(frozen=True)
class Drawn:
    """A word and how it is drawn.

    Attributes:
        text: In lower case, with a capital, or in capitals.
        degraded: Whether it is made small, blurred, paled and noisy.
        number: Of the word among all: what is random about it follows from it.
    """

    text: str
    degraded: bool
    number: int


def word_list(file: Path) -> tuple[str, ...]:
    """Return the words of letters alone, in the order of the file."""
    lines = file.read_text(encoding="ascii").split("\n")
    words = (line.strip() for line in lines)
    return tuple(dict.fromkeys(one for one in words if one.isalpha() and len(one) <= LONGEST))


def divide(words: tuple[str, ...], seed: int = 0) -> dict[str, list[Drawn]]:
    """Give each split words of its own; clean and degraded ones are different words too."""
    order = np.random.default_rng(seed).permutation(len(words))
    found, at = {}, 0
    for name, number in NUM_WORDS.items():
        chosen = order[at : at + number]
        at += number
        found[name] = [_drawn(words[n], int(n), place >= number // 2) for place, n in enumerate(chosen)]
    return found


def _drawn(word: str, number: int, degraded: bool) -> Drawn:
    share = np.random.default_rng([1, number]).random()
    return Drawn(word if share < 0.6 else word.capitalize() if share < 0.85 else word.upper(), degraded, number)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", name), size)


def render(drawn: Drawn) -> np.ndarray:
    """Return a word as grey values, uint8 [64, 192]; what is left on the right goes on as the last column was."""
    random = np.random.default_rng([2, drawn.number])
    name, size = FONTS[random.integers(len(FONTS))], int(random.integers(36, 49))
    left, top, right, bottom = random.integers(3, 12, 4)
    while True:
        box = _font(name, size).getbbox(drawn.text)
        width, height = box[2] - box[0] + left + right, box[3] - box[1] + top + bottom
        if width * HEIGHT <= WIDTH * height or size <= 12:
            break
        size, top, bottom = size - 2, top + 1, bottom + 1  # a long word is smaller, and has more room around it
    paper, ink = int(random.integers(170, 256)), int(random.integers(0, 90))
    if drawn.degraded:
        ink = int(paper - (paper - ink) * random.uniform(0.4, 0.8))
    image = Image.new("L", (int(width), int(height)), paper)
    ImageDraw.Draw(image).text((left - box[0], top - box[1]), drawn.text, fill=ink, font=_font(name, size))
    wide = min(WIDTH, max(1, round(width * HEIGHT / height)))
    if drawn.degraded:
        small = random.uniform(0.25, 0.5)
        image = image.resize((max(1, round(wide * small)), round(HEIGHT * small)), Image.Resampling.BILINEAR)
    image = image.resize((wide, HEIGHT), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float64)
    if drawn.degraded:
        blurred = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.5)))
        pixels = np.asarray(blurred, dtype=np.float64) + random.normal(0, random.uniform(4, 18), (HEIGHT, wide))
    pixels = pixels.clip(0, 255).round().astype(np.uint8)
    return np.pad(pixels, ((0, 0), (0, WIDTH - wide)), mode="edge")


def samples(chosen: list[Drawn]) -> Samples:
    """Draw words: inputs [N, 1, 64, 192] from -1 to 1, targets [N, 9]."""
    pixels = np.stack([render(one) for one in chosen])
    inputs = torch.from_numpy(pixels)[:, None].to(torch.float32) / 127.5 - 1
    return Samples(inputs, encode([one.text for one in chosen], LONGEST))


def load(cache: str | None = None) -> Splits:
    """Return the three splits.

    Args:
        cache: Folder in which the list of words is kept; None: the user's.
    """
    splits = divide(word_list(fetch(WORD_LIST, cache)))
    return Splits(samples(splits["train"]), samples(splits["validation"]), samples(splits["test"]), classes=())
