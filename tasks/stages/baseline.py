"""Train the baseline or take the given weights, and measure it on the validation set."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruning.errors import DataError
from pruning.io.checkpoint import save_checkpoint
from pruning.io.files import JsonError, checked_json
from pruning.plan.plan import Plan
from pruning.world import World
from tasks.config.schema import Settings
from tasks.data import read_description, save_answers, task_of
from tasks.data_sets import SPLITS, Split
from tasks.determinism import begin
from tasks.fingerprint import fingerprint
from tasks.models import (
    example_inputs,
    load_given_weights,
    make_factory,
    measure_of,
    save_model,
    sparsity_training,
)
from tasks.passes import Passes, SamplesOf
from tasks.ranks import train
from tasks.sanity_check import sanity_check
from tasks.stage_table import find_stage
from tasks.training import Job
from tasks.training_state import epoch_folder, forget, unfinished
from tasks.workspace import Workspace

FOLDER = "baseline"

log = logging.getLogger("secateur")


def baseline(settings: Settings, workspace: Workspace) -> None:
    """Write the baseline's checkpoint.

    Raises:
        SettingsError: What the settings name can't be called.
        CheckpointError: The given weights are damaged or don't fit.
        ModelError: Model, loss or metric fail on the first batch, or training broke down.
        DataError: There are no labels to train by.
        ExportError: The model can't be exported to ONNX, so that no run could end.
    """
    sanity_check(settings, workspace, exports=True)
    begin(settings)
    data = read_description(workspace)
    model = make_factory(settings, data)().to(settings.run.device)
    learned_from = data.fingerprint
    load_given_weights(model, settings)
    if settings.model.weights is not None and settings.baseline.recipe is None:
        learned_from = _fingerprint_beside(settings.model.weights) or learned_from
    example = example_inputs(workspace, settings)
    under_way = unfinished(workspace, f"baseline-{fingerprint(find_stage(FOLDER), settings, workspace)[:16]}")
    if settings.baseline.recipe is not None:
        _train(model, settings, workspace, under_way)
    answers = {} if data.labelled else {name: _answers(model, workspace, name, settings) for name in SPLITS}
    validation = SamplesOf("validation", targets=answers.get("validation"))
    measured, _ = Passes(FOLDER, settings, workspace).measure(model, validation, example)
    nothing = Plan(removed={}, sizes={})
    save_model(workspace.folder(FOLDER), model, nothing, measured, learned_from)
    if answers:
        save_answers(answers, workspace.folder(FOLDER))
    for epoch in settings.baseline.keep_epochs:
        shutil.copytree(under_way / str(epoch), epoch_folder(workspace, epoch))
    forget(workspace)
    score = measure_of(settings, data)
    log.info(
        "baseline: %s %s on validation, %s MACs, %s parameters",
        *(score.name, score.show(measured.score)),
        f"{measured.macs:,}",
        f"{measured.parameters:,}",
    )


def _answers(model: nn.Module, workspace: Workspace, split: Split, settings: Settings) -> Tensor:
    """Return what stands for each sample's target, [N, ...]: of a classification the class that the model predicts."""
    found = Passes(FOLDER, settings, workspace).answers(model, SamplesOf(split, has_targets=False))
    try:
        return task_of(settings).join(found)
    except RuntimeError as fault:
        raise DataError(
            f"the data have no labels, so that the baseline's answers take their place; those of {split} differ in "
            f"shape from batch to batch ({fault}): give samples of one shape, or labels"
        ) from fault


def _train(model: nn.Module, settings: Settings, workspace: Workspace, under_way: Path) -> None:
    """Train in place, and write a copy after each epoch that is to be kept. A killed training is continued."""
    recipe = settings.baseline.recipe
    assert recipe is not None
    job = Job(
        stage=FOLDER,
        settings=settings,
        workspace=workspace,
        recipe=recipe,
        seed=settings.run.seed,
        checkpointed=under_way / "training.safetensors",
        hooks=keep_epochs,
    )
    train(job, model, Plan(removed={}, sizes={}), None, "baseline: training")


@contextmanager
def keep_epochs(model: nn.Module, job: Job, world: World) -> Iterator[dict[str, Any]]:
    """Bring about the sparsity that the recipe names, and write a copy after each epoch that is to be kept."""
    settings, recipe = job.settings, job.recipe
    if recipe.sparsity is None and not settings.baseline.keep_epochs:
        yield {}
        return
    sparsity = sparsity_training(recipe, model, example_inputs(job.workspace, settings))

    def after_step(step: int, steps: int, rate: float) -> None:
        if sparsity is not None:
            sparsity(step, steps, rate)
        epoch, within = divmod(step * recipe.epochs, steps)
        if world.is_first and within == 0 and epoch in settings.baseline.keep_epochs:
            kept = job.checkpointed.parent / str(epoch)
            save_checkpoint(kept, copy.deepcopy(model).cpu(), Plan(removed={}, sizes={}))

    yield {"after_step": after_step, "memory": sparsity}


def _fingerprint_beside(weights: Path) -> str | None:
    """Return the data fingerprint beside the weights, if they are a checkpoint of this pipeline."""
    try:
        header = checked_json((weights.parent / "meta.json").read_bytes(), dict[str, Any])
        return str(header["meta"]["data_fingerprint"])
    except (OSError, JsonError, KeyError, TypeError):
        return None
