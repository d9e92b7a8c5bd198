"""The recipes of an attempt: each trains a copy of the same model, here or in other processes, with the same result."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save as format_safetensors
from torch import nn

from pruning.errors import ModelError, TargetError
from pruning.io.checkpoint import save_checkpoint
from pruning.io.files import checked_json, replace_file
from pruning.plan.masks import compose
from pruning.training.recipe import Recipe
from tasks.config.schema import Settings
from tasks.fan_out import Part
from tasks.loop.methods import Step, loaded_step
from tasks.loop.step_context import Sharing, StepContext, open_again
from tasks.models import ModelMetrics
from tasks.passes import SamplesOf
from tasks.ranks import train
from tasks.training import Job
from tasks.workspace import Workspace

NO_TRAINING = "no training"
STEP = "step"
"""Folder of what is under way: the model that every recipe starts from."""

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class Candidate:
    """A recipe's result."""

    recipe: str
    model: nn.Module
    measured: ModelMetrics
    kept_epoch: int | None = None


class _Outcome(BaseModel):
    """What a recipe came to, beside the weights: either what was measured, or why it has lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measured: ModelMetrics | None = None
    kept_epoch: int | None = None
    fault: str | None = None


def train_all(
    context: StepContext, taken: Step, number: int, under_way: Path
) -> tuple[list[Candidate], dict[str, str]]:
    """Train the model of a step by every recipe, or measure it as it is where there is none.

    Every recipe is trained, whatever the others come to, so that it changes nothing who trains which, and when.

    Args:
        context: Where the step started.
        taken: The step.
        number: Of the attempt.
        under_way: The folder of states of training.

    Returns:
        What the recipes gave, in their order; and why those that gave nothing have lost.
    """
    settings = context.settings
    candidates: list[Candidate] = []
    failed: dict[str, str] = {}
    if not settings.prune.recipes:
        try:
            candidates.append(_as_it_is(context, taken))
        except ModelError as error:
            failed[NO_TRAINING] = str(error)
    elif context.sharing is not None and len(settings.prune.recipes) > 1:
        return _trained_elsewhere(context, taken, context.sharing)
    for recipe in settings.prune.recipes:
        found = _try(context, taken, recipe, number, under_way)
        if isinstance(found, Candidate):
            candidates.append(found)
        else:
            failed[recipe.name] = found
    return candidates, failed


def _try(context: StepContext, taken: Step, recipe: Recipe, number: int, under_way: Path) -> Candidate | str:
    """Train by a recipe, or return why it has lost: it diverges or misses its sparsity; the others go on."""
    try:
        return _train_by(context, taken, recipe, number, under_way / f"{recipe.name}.safetensors")
    except (ModelError, TargetError) as error:
        log.warning("attempt %d: recipe %s: %s", number + 1, recipe.name, error)
        return str(error)


def _trained_elsewhere(context: StepContext, taken: Step, sharing: Sharing) -> tuple[list[Candidate], dict[str, str]]:
    """Have every recipe trained as a part, and read what came of them, in their order."""
    recipes = context.settings.prune.recipes
    if context.settings.prune.kind == "structured":
        both = compose(context.plan, taken.plan, context.baseline, context.example)
        save_checkpoint(sharing.place / STEP, copy.deepcopy(taken.model).cpu(), both)
    parts = [
        Part(
            f"recipe-{position + 1}",
            "tasks.loop.recipes:train_part",
            {"attempt": sharing.attempt, "position": position},
            (sharing.place / f"{recipe.name}.result.safetensors",),
        )
        for position, recipe in enumerate(recipes)
    ]
    sharing.compute(parts, context.settings, context.workspace)
    candidates: list[Candidate] = []
    failed: dict[str, str] = {}
    for recipe, part in zip(recipes, parts, strict=True):
        with safe_open(part.files[0], framework="pt") as file:
            found = checked_json(file.metadata()["outcome"], _Outcome)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if found.measured is None:
            failed[recipe.name] = str(found.fault)
            continue
        model = copy.deepcopy(taken.model)
        model.load_state_dict(state)
        candidates.append(Candidate(recipe.name, model, found.measured, found.kept_epoch))
    return candidates, failed


def train_part(
    settings: Settings, workspace: Workspace, files: Sequence[Path], attempt: Mapping[str, Any], position: int
) -> None:
    """Train by one recipe while its attempt is under way, and write what comes of it: a part for `tasks.fan_out`.

    Args:
        settings: Of the run.
        workspace: Of the run.
        files: The one to write: the state of the trained model, with its figures as metadata.
        attempt: Which, see `tasks.loop.step_context.Sharing`.
        position: Of the recipe.
    """
    under_way = files[0].parent
    context = open_again(settings, workspace, attempt)
    found = _try(
        context, loaded_step(context, under_way / STEP), settings.prune.recipes[position], attempt["number"], under_way
    )
    if isinstance(found, Candidate):
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.model.state_dict().items()}
        outcome = _Outcome(measured=found.measured, kept_epoch=found.kept_epoch)
    else:
        state, outcome = {}, _Outcome(fault=found)
    replace_file(files[0], format_safetensors(state, metadata={"outcome": outcome.model_dump_json()}))


def _as_it_is(context: StepContext, taken: Step) -> Candidate:
    """Measure what a step made, where nothing is trained."""
    measured, _ = context.passes.measure(taken.model, SamplesOf("validation"), context.example)
    return Candidate(NO_TRAINING, taken.model, measured)


def _train_by(context: StepContext, taken: Step, recipe: Recipe, number: int, kept: Path) -> Candidate:
    """Fine-tune a copy by one recipe and measure it; a training that was killed goes on where it was kept.

    With `prune.undo_training`, epochs that do harm are undone, unless training has to reach its end.
    """
    settings, workspace, model = context.settings, context.workspace, copy.deepcopy(taken.model)
    job = Job(
        stage="prune",
        settings=settings,
        workspace=workspace,
        recipe=recipe,
        seed=settings.run.seed + 1 + number,
        checkpointed=kept,
        hooks=taken.hooks,
        teacher=workspace.folder("baseline"),
        undoes=settings.prune.undo_training,
    )
    plan = taken.whole_plan or compose(context.plan, taken.plan, context.baseline, context.example)
    history = train(job, model, plan, context.baseline, f"attempt {number + 1}: {recipe.name}")
    measured, _ = context.passes.measure(model, SamplesOf("validation"), context.example)
    return Candidate(recipe.name, model, measured, history.kept if history.kept < len(history.losses) else None)
