"""Train the model to start from, or take it as it was brought along; measure it on the validation set."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from torch import nn

import pruning
from pruning.plan import Plan
from pruning.training import finetune
from pruning.weights import load_weights
from tasks.data import read_description, read_split
from tasks.models import (
    augmentation,
    begin,
    example_inputs,
    loss_and_metric,
    make_factory,
    measure,
    save_model,
    sparsity_training,
)
from tasks.progress import shown
from tasks.settings import Settings
from tasks.workspace import Workspace

FOLDER = "baseline"

log = logging.getLogger("secateur")


def baseline(settings: Settings, workspace: Workspace) -> None:
    """Write the baseline's checkpoint.

    Raises:
        SettingsError: The model's function can't be called or returned no module.
        CheckpointError: The weights that were brought along are damaged or don't fit.
        ModelError: The model can't be run on the data, or training broke down.
    """
    begin(settings)
    data = read_description(workspace)
    model = make_factory(settings, data)().to(settings.run.device)
    learned_from = data.fingerprint
    if settings.model.weights is not None:
        load_weights(model, settings.model.weights)
        if settings.baseline.recipe is None:
            learned_from = _fingerprint_beside(settings.model.weights) or learned_from
    example = example_inputs(workspace, settings)
    pruning.find_groups(model, example)  # a model that can't be run on these data says so before it is trained
    if settings.baseline.recipe is not None:
        _train(model, settings, workspace)
    measured = measure(model, read_split(workspace, "validation"), settings, example)
    save_model(workspace.folder(FOLDER), model, Plan(removed={}, sizes={}), measured, learned_from)
    log.info(
        "baseline: accuracy %.2f %% on validation, %s MACs, %s parameters",
        100 * measured.accuracy,
        f"{measured.macs:,}",
        f"{measured.parameters:,}",
    )


def _train(model: nn.Module, settings: Settings, workspace: Workspace) -> None:
    recipe = settings.baseline.recipe
    assert recipe is not None
    loss, _ = loss_and_metric(settings)
    with shown("baseline: training") as progress:
        finetune(
            model,
            read_split(workspace, "train"),
            recipe,
            loss=loss,
            seed=settings.run.seed,
            augment=augmentation(settings),
            after_step=sparsity_training(recipe, model, example_inputs(workspace, settings)),
            progress=progress,
        )


def _fingerprint_beside(weights: Path) -> str | None:
    """Return the data fingerprint that a checkpoint of this pipeline carries beside its weights, if it is one."""
    try:
        return str(json.loads((weights.parent / "meta.json").read_text(encoding="utf-8"))["meta"]["data_fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
