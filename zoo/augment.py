"""Random changes of a training batch that leave its classes as they are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def crop_and_flip(inputs: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift every image at random, zeros coming in at the border, and mirror half of them left to right.

    The usual augmentation of CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2). Not for characters: use `crop`.

    Args:
        inputs: Tensor [N, C, H, W].
        generator: Where the randomness comes from.
        padding: The largest shift in pixels.

    Returns:
        A new tensor [N, C, H, W].
    """
    shifted = _shift(functional.pad(inputs, (padding,) * 4), generator, padding)
    mirrored = _draw(2, len(inputs), generator, inputs.device).bool()
    return torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)


def crop(inputs: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift every image at random, its border pixels being repeated; nothing is mirrored.

    Args:
        inputs: Tensor [N, C, H, W].
        generator: Where the randomness comes from.
        padding: The largest shift in pixels. An image of 8 × 8 bears 1, one of 32 × 32 bears 4.

    Returns:
        A new tensor [N, C, H, W].
    """
    return _shift(functional.pad(inputs, (padding,) * 4, mode="replicate"), generator, padding)


def _shift(padded: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Cut a window out of each padded image, at a place of its own."""
    num_images, _, height, width = padded.shape
    device = padded.device
    top, left = (_draw(2 * padding + 1, num_images, generator, device)[:, None] for _ in range(2))
    rows = (top + torch.arange(height - 2 * padding, device=device))[:, None, :, None]
    columns = (left + torch.arange(width - 2 * padding, device=device))[:, None, None, :]
    image = torch.arange(num_images, device=device)[:, None, None, None]
    channel = torch.arange(padded.shape[1], device=device)[None, :, None, None]
    return padded[image, channel, rows, columns]


def _draw(below: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw whole numbers on the generator's device and bring them to the data's."""
    return torch.randint(below, (count,), generator=generator, device=generator.device).to(device)
