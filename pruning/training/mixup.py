"""Mix the samples of a batch with each other: mixup and CutMix.

    mixup    x ← λ x + (1 − λ) x'       loss ← λ · loss(f(x), y) + (1 − λ) · loss(f(x), y')
    cutmix   a box of x comes from x'   likewise, λ being the share of the image outside the box

x' are the same samples in another order. λ ~ Beta(α, α), the order and the box are a function of (seed, epoch, step),
so that a run that is taken up again mixes the same.

Sources: Zhang et al. 2018, arXiv 1710.09412 (mixup); Yun et al. 2019, arXiv 1905.04899 (CutMix).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pruning.containers import find_tensors, take, with_tensors
from pruning.errors import SettingsError
from pruning.evaluation import Loss, mean_loss
from pruning.training.recipe import Recipe


@dataclass(frozen=True)
class Mixed:
    """A batch that was mixed.

    Attributes:
        inputs: Of the model.
        order: Which sample each was mixed with, int64 [N].
        share: λ, what is left of the sample itself.
    """

    inputs: Any
    order: Tensor
    share: float

    def loss(self, loss: Loss, outputs: Any, targets: Any) -> Tensor:
        """Return the mixed loss of the outputs; targets are those of the samples themselves."""
        other = take(targets, self.order)
        return self.share * mean_loss(loss, outputs, targets) + (1 - self.share) * mean_loss(loss, outputs, other)


def mix(inputs: Any, targets: Any, recipe: Recipe, *key: int) -> Mixed:
    """Mix a batch, on its device.

    Args:
        inputs: In any container, samples on axis 0.
        targets: Likewise.
        recipe: With `mixup`, `cutmix`, or both, of which each batch gets one.
        key: Seed, epoch, step, and whatever else tells this batch from others.

    Raises:
        SettingsError: They can't be mixed: integers, or no images for CutMix.
    """
    drawn = random.Random(" ".join(map(str, key)))  # noqa: S311 - no secret: the same key, the same numbers
    cuts = recipe.cutmix > 0 and (recipe.mixup == 0 or drawn.random() < 0.5)
    alpha = recipe.cutmix if cuts else recipe.mixup
    share = drawn.betavariate(alpha, alpha)
    found = find_tensors(inputs)
    number = len(found[0])
    order = torch.tensor(drawn.sample(range(number), number), device=found[0].device)
    what = f"recipe {recipe.name!r} sets {'cutmix' if cuts else 'mixup'}"
    if wrong := [tensor for tensor in found if not tensor.is_floating_point()]:
        raise SettingsError(
            f"{what}, which needs inputs of floating point; one is {str(wrong[0].dtype).removeprefix('torch.')} "
            f"{list(wrong[0].shape)}: set it to 0"
        )
    if not cuts:
        mixed = with_tensors(inputs, lambda tensor: share * tensor + (1 - share) * tensor[order])
        return Mixed(mixed, order, share)
    if len(found) != 1 or found[0].ndim != 4 or any(one.ndim > 2 for one in find_tensors(targets)):
        shown = ", ".join(str(list(one.shape)) for one in (*found, *find_tensors(targets)))
        raise SettingsError(
            f"{what}, which needs images [N, C, H, W] and targets of whole images; found {shown}: set it to 0"
        )
    height, width = found[0].shape[-2:]
    rows, columns = (_cut(size, sqrt(1 - share), drawn) for size in (height, width))
    pasted = found[0].clone()
    pasted[..., rows, columns] = found[0][order][..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixed(with_tensors(inputs, lambda _tensor: pasted), order, 1 - area / (height * width))


def _cut(size: int, share: float, drawn: random.Random) -> slice:
    """Return a side of the box: of this share, around a point anywhere, what lies outside the image left off."""
    half, centre = int(size * share) // 2, drawn.randrange(size)
    return slice(max(0, centre - half), min(size, centre + half))
