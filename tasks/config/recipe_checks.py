"""What recipes need of the other settings: loss, device, kind of pruning; and whether what they name is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from pruning.errors import SettingsError
from pruning.training.recipe import Recipe
from tasks.config import import_strings
from tasks.config.types import LOSSES

if TYPE_CHECKING:
    from tasks.config.schema import Settings


def _importable(recipe: Recipe) -> Recipe:
    """Accept a recipe whose import strings can be imported."""
    for name in ("optimizer", "schedule", "trainer"):
        reference = getattr(recipe, name)
        if reference is not None and ":" in reference:
            try:
                import_strings.resolve(reference)
            except SettingsError as error:
                raise ValueError(f"{name}: {error}") from error
    return recipe


ImportableRecipe = Annotated[Recipe, AfterValidator(_importable)]


def check_recipes(settings: Settings) -> None:
    """See that recipes suit the rest of the settings.

    Raises:
        ValueError: One doesn't; the text names it.
    """
    first, several = settings.baseline.recipe, settings.prune.recipes
    if first is not None:
        _importable(first)
        _check_baseline(settings, first)
    for recipe in (*([] if first is None else [first]), *several):
        if recipe.label_smoothing > 0 and settings.training.loss not in (None, *LOSSES.values()):
            raise ValueError(
                f"recipe {recipe.name!r} sets label_smoothing, which only the built-in loss knows; smooth inside "
                f"{settings.training.loss!r}, such as an object CrossEntropyLoss(label_smoothing=0.1) of your own "
                "module"
            )
        if recipe.channels_last and not settings.run.device.startswith("cuda"):
            raise ValueError(
                f"recipe {recipe.name!r} sets channels_last, which is for CUDA alone; run.device is "
                f"{settings.run.device!r}: set it to false"
            )
    for recipe in several:
        if settings.prune.undo_training and (recipe.ema is not None or recipe.early_stopping is not None):
            raise ValueError(
                f"recipe {recipe.name!r} has ema or early_stopping, and prune.undo_training undoes epochs; choose one "
                "of both"
            )
        if settings.prune.kind == "dynamic" and (recipe.early_stopping is not None or recipe.trainer is not None):
            raise ValueError(
                f"recipe {recipe.name!r} has early_stopping or a trainer, but gates have to be trained to their end; "
                "remove it"
            )


def _check_baseline(settings: Settings, recipe: Recipe) -> None:
    if recipe.distillation > 0:
        raise ValueError("baseline.recipe distils, but there is no teacher before the baseline; set distillation to 0")
    kept = settings.baseline.keep_epochs
    if kept and (recipe.steps is not None or recipe.trainer is not None or recipe.early_stopping is not None):
        raise ValueError(
            "baseline.keep_epochs counts epochs, but baseline.recipe has steps, a trainer or early_stopping, with "
            "which an epoch may never come; remove one of both"
        )
