"""What recipes need of the other settings: the loss, the device, the kind of pruning."""

from __future__ import annotations

from collections.abc import Collection

from pruning.training.recipe import Recipe
from tasks.config.prune_schema import Prune
from tasks.config.types import LOSSES, importable


def check_recipes(
    baseline: Recipe | None, kept_epochs: Collection[int], prune: Prune, loss: str | None, device: str
) -> None:
    """See that recipes suit the rest of the settings.

    Args:
        baseline: The baseline's recipe.
        kept_epochs: Of the baseline, whose weights are kept.
        prune: With the recipes of fine-tuning.
        loss: The import string of the loss; None for the task's own.
        device: Of the run.

    Raises:
        ValueError: One doesn't; the text names it.
    """
    if baseline is not None:
        importable(baseline)
        _check_baseline(baseline, kept_epochs)
    for recipe in (*([] if baseline is None else [baseline]), *prune.recipes):
        if recipe.label_smoothing > 0 and loss not in (None, *LOSSES.values()):
            raise ValueError(
                f"recipe {recipe.name!r} sets label_smoothing, which only the built-in loss knows; smooth inside "
                f"{loss!r}, such as an object CrossEntropyLoss(label_smoothing=0.1) of your own "
                "module"
            )
        if recipe.channels_last and not device.startswith("cuda"):
            raise ValueError(
                f"recipe {recipe.name!r} sets channels_last, which is for CUDA alone; run.device is "
                f"{device!r}: set it to false"
            )
    for recipe in prune.recipes:
        if prune.undo_training and (recipe.ema is not None or recipe.early_stopping is not None):
            raise ValueError(
                f"recipe {recipe.name!r} has ema or early_stopping, and prune.undo_training undoes epochs; choose one "
                "of both"
            )
        if prune.kind == "dynamic" and (recipe.early_stopping is not None or recipe.trainer is not None):
            raise ValueError(
                f"recipe {recipe.name!r} has early_stopping or a trainer, but gates have to be trained to their end; "
                "remove it"
            )


def _check_baseline(recipe: Recipe, kept_epochs: Collection[int]) -> None:
    if recipe.distillation > 0:
        raise ValueError("baseline.recipe distils, but there is no teacher before the baseline; set distillation to 0")
    if kept_epochs and (recipe.steps is not None or recipe.trainer is not None or recipe.early_stopping is not None):
        raise ValueError(
            "baseline.keep_epochs counts epochs, but baseline.recipe has steps, a trainer or early_stopping, with "
            "which an epoch may never come; remove one of both"
        )
