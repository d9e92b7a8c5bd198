from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zoo.augment import crop, crop_and_flip

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augmentation", [crop, crop_and_flip])
def test_augmentations_keep_shape_and_inputs_and_follow_their_generator(augmentation: Augmentation) -> None:
    inputs = torch.rand(16, 3, 12, 9, generator=seeded())
    before = inputs.clone()
    outputs = augmentation(inputs, seeded())
    assert outputs.shape == inputs.shape
    assert torch.equal(inputs, before)
    assert torch.equal(outputs, augmentation(inputs, seeded()))
    assert not torch.equal(outputs, augmentation(inputs, seeded(1)))


def test_crop_shifts_each_image_as_a_whole_and_repeats_its_border() -> None:
    rows = torch.arange(8.0).reshape(1, 1, 8, 1).expand(64, 2, 8, 8)
    columns = torch.arange(8.0).reshape(1, 1, 1, 8).expand(64, 2, 8, 8)
    shifted = crop(torch.cat([rows, columns], dim=1), seeded(), padding=2)
    places = set()
    for image in shifted:
        down, across = int(image[0, 4, 4] - 4), int(image[2, 4, 4] - 4)
        places.add((down, across))
        expected = (torch.arange(8.0) + down).clamp(0, 7)[:, None].expand(8, 8)
        assert torch.equal(image[0], expected)
        assert torch.equal(image[1], expected)
        assert torch.equal(image[2], (torch.arange(8.0) + across).clamp(0, 7).expand(8, 8))
    assert {down for down, _ in places} == {across for _, across in places} == {-2, -1, 0, 1, 2}


def test_crop_and_flip_mirrors_about_half_of_the_images() -> None:
    inputs = torch.arange(8.0).expand(400, 1, 8, 8) + 1
    rising = crop_and_flip(inputs, seeded(), padding=0).diff(dim=3).flatten(1)
    assert torch.all((rising == 1).all(1) | (rising == -1).all(1))
    assert 150 < (rising[:, 0] == -1).sum() < 250


def test_crop_and_flip_brings_in_zeros() -> None:
    outputs = crop_and_flip(torch.ones(64, 1, 8, 8), seeded(), padding=4)
    assert set(outputs.flatten().tolist()) == {0.0, 1.0}
    assert outputs.flatten(1).sum(1).min() >= 16
