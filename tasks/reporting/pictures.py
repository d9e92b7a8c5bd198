"""Images as parts of a page, with boxes drawn over them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
"""Of classes, in turn: colour-blind people tell them apart (Okabe and Ito, 2008)."""

_MOST_PIXELS = 256


def scaled(image: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Bring an image [C, H, W] to one or three channels and to [0, 1], from its least and largest value."""
    image = image.detach().float().cpu()[: 3 if image.shape[0] >= 3 else 1]
    low, high = float(image.min()) if low is None else low, float(image.max()) if high is None else high
    return ((image - low) / (high - low if high > low else 1.0)).clamp(0, 1)


def rgb(colour: str) -> Tensor:
    """Return a colour of COLOURS as [3], in [0, 1]."""
    return torch.tensor([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])


def picture_of(image: Tensor, boxes: Sequence[tuple[list[float], int, float | None]] = ()) -> str:
    """Return an image [C, H, W] with boxes as SVG."""
    height, width = image.shape[1:]
    values = (image.expand(3, -1, -1) * 255).round().to(torch.uint8).movedim(0, -1).contiguous()
    picture, content = Image.fromarray(values.numpy(), "RGB"), BytesIO()
    picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    kind = "PNG" if max(height, width) <= _MOST_PIXELS // 2 else "JPEG"
    picture.save(content, kind, quality=88)
    data = f"data:image/{kind.lower()};base64,{b64encode(content.getvalue()).decode()}"
    thick = max(height, width) / 70
    drawn = "".join(
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{low - y:.1f}" fill="none" '
        f'stroke="{colour}" stroke-width="{thick * by:.2f}"/>'
        for (x, y, right, low), label, _ in boxes
        for colour, by in (("#000000", 2), (COLOURS[label % len(COLOURS)], 1))
    )
    blocky = ' style="image-rendering:pixelated"' if max(height, width) < 100 else ""
    return (
        f'<svg role="img" viewBox="0 0 {width} {height}">'
        f'<image href="{data}" width="{width}" height="{height}"{blocky}/>'
        f"{drawn}</svg>"
    )
