from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pruning.errors import SettingsError
from pruning.training.recipe import Recipe
from pruning.training.step import mix

IMAGES = torch.randn(8, 3, 10, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def recipe(**changed: Any) -> Recipe:
    return Recipe(**changed)


def test_mixup_is_the_weighted_mean_of_two_samples_and_of_their_losses() -> None:
    mixed = mix(IMAGES, LABELS, recipe(mixup=0.4), 0, 1, 2)
    assert 0 < mixed.share < 1
    assert mixed.order.sort().values.tolist() == list(range(8))
    assert torch.allclose(mixed.inputs, mixed.share * IMAGES + (1 - mixed.share) * IMAGES[mixed.order])
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    one_hot = mixed.share * functional.one_hot(LABELS, 3) + (1 - mixed.share) * functional.one_hot(
        LABELS[mixed.order], 3
    )
    soft = functional.cross_entropy(logits, one_hot)  # what is usually written: the cross entropy of mixed targets
    assert float(mixed.loss(functional.cross_entropy, logits, LABELS)) == pytest.approx(float(soft), rel=1e-5)


def test_cutmix_pastes_one_box_and_weighs_by_its_area() -> None:
    for step in range(20):
        mixed = mix(IMAGES, LABELS, recipe(cutmix=1.0), 0, 0, step)
        pasted = (mixed.inputs == IMAGES[mixed.order]) & (IMAGES[mixed.order] != IMAGES)
        moved = mixed.order != torch.arange(8)
        area = pasted[moved].all(dim=1)  # over channels
        assert area.any(dim=0).float().mean().item() == pytest.approx(1 - mixed.share) or not moved.any()
        rows, columns = area[0].any(1).nonzero(), area[0].any(0).nonzero()
        assert int(area[0].sum()) == len(rows) * len(columns), "a rectangle"
        assert torch.equal(mixed.inputs[~moved], IMAGES[~moved])


def test_the_same_seed_epoch_and_step_mix_the_same_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = mix(IMAGES, LABELS, recipe(mixup=0.2, cutmix=1.0), 3, 4, 5)
    torch.manual_seed(2)
    again = mix(IMAGES, LABELS, recipe(mixup=0.2, cutmix=1.0), 3, 4, 5)
    assert torch.equal(first.inputs, again.inputs)
    others = [mix(IMAGES, LABELS, recipe(mixup=0.2, cutmix=1.0), *key) for key in ((2, 4, 5), (3, 5, 5), (3, 4, 6))]
    assert all(not torch.equal(first.inputs, other.inputs) for other in others)


def test_both_are_used_where_both_are_named_and_share_is_one_half_on_average() -> None:
    found = [mix(IMAGES, LABELS, recipe(mixup=1.0, cutmix=1.0), 0, 0, step) for step in range(200)]
    cut = sum(bool((one.inputs[0] == IMAGES[0]).any()) for one in found)
    assert 60 < cut < 140
    shares = torch.tensor([mix(IMAGES, LABELS, recipe(mixup=1.0), 0, 0, step).share for step in range(500)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.05)


def test_every_floating_point_tensor_of_several_inputs_is_mixed() -> None:
    inputs = {"image": IMAGES, "table": torch.randn(8, 4)}
    mixed = mix(inputs, LABELS, recipe(mixup=0.4), 0)
    for name, tensor in inputs.items():
        assert torch.allclose(mixed.inputs[name], mixed.share * tensor + (1 - mixed.share) * tensor[mixed.order])


@pytest.mark.parametrize(
    ("inputs", "targets", "by", "text"),
    [
        (
            torch.zeros(8, 5, dtype=torch.long),
            LABELS,
            recipe(mixup=0.2),
            r"mixup, which needs .* one is int64 \[8, 5\]",
        ),
        (torch.randn(8, 5), LABELS, recipe(cutmix=0.2), r"cutmix, which needs images .*found \[8, 5\], \[8\]"),
        (IMAGES, torch.zeros(8, 10, 12, dtype=torch.long), recipe(cutmix=0.2), "targets of whole images"),
    ],
)
def test_what_can_not_be_mixed_is_refused(inputs: Tensor, targets: Tensor, by: Recipe, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        mix(inputs, targets, by, 0)
