"""One attempt of the loop: take a step, fine-tune by each recipe, measure, judge."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

import pruning
from pruning.allocation.schedule import Attempt
from pruning.errors import ModelError, TargetError
from pruning.io.checkpoint import save_checkpoint
from pruning.plan.narrow import expand
from pruning.training.recipe import Recipe
from pruning.training.trainer import Callbacks, finetune
from tasks.config.schema import Settings
from tasks.data import Description, read_description, read_split
from tasks.determinism import begin
from tasks.loop.ledger import Ledger, Row
from tasks.loop.methods import Step, StepContext, take_step
from tasks.loop.targets import LATENCY, Goals, LatencyEstimate, estimate_latency
from tasks.models import (
    ModelMetrics,
    augmentation,
    example_inputs,
    load_model,
    loss_and_metric,
    make_factory,
    measure,
    save_model,
)
from tasks.progress import shown
from tasks.training_state import EpochCheckpointer, epoch_folder, unfinished
from tasks.workspace import Workspace

WHOLE = "whole"
"""Folder below a checkpoint: the model of the original's shape, where channels may come back."""

NO_TRAINING = "no training"
_ROUNDING = 1e-9

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class _Candidate:
    """A recipe's result."""

    recipe: str
    model: nn.Module
    measured: ModelMetrics


def attempt(settings: Settings, workspace: Workspace, ledger: Ledger, goals: Goals, step: Attempt, floor: float) -> Row:
    """Go from the last accepted model to the step's goal, and judge.

    Args:
        settings: Of the run.
        workspace: An accepted attempt's checkpoint is written into it.
        ledger: What came before; not changed.
        goals: What the target comes to.
        step: Number and goal of this attempt.
        floor: The lowest accuracy on the validation set that is accepted.

    Returns:
        The ledger's new row.
    """
    begin(settings, offset=1 + step.number)
    data = read_description(workspace)
    example = example_inputs(workspace, settings)
    baseline_folder, iterations = workspace.folder("baseline"), workspace.folder("iterations")
    last = ledger.accepted[-1] if ledger.accepted else None
    parent = iterations / last.checkpoint if last and last.checkpoint else baseline_folder
    if settings.prune.channels_may_return and last:
        parent = parent / WHOLE
    model, plan, _ = load_model(parent, settings, data, example)
    teacher, _, _ = load_model(baseline_folder, settings, data, example)
    start = _start(settings, workspace, data, example)
    try:
        reference = teacher if settings.prune.channels_may_return else model
        asked = goals.at(step.goal)
        taken = take_step(
            StepContext(settings, workspace, ledger, step.goal, asked, model, plan, example, reference, start)
        )
    except TargetError as error:
        reached = last.reached if last else 0.0
        return Row(attempt=step.number, goal=step.goal, reached=reached, accepted=False, refused=str(error))
    under_way = unfinished(workspace, f"{ledger.fingerprint[:16]}-{step.number}")
    candidates: list[_Candidate] = []
    failed: dict[str, str] = {}
    for recipe in settings.prune.recipes:
        try:
            kept = EpochCheckpointer(under_way / f"{recipe.name}.safetensors")
            candidates.append(_recover(settings, workspace, taken, recipe, teacher, step.number, example, kept))
        except (ModelError, TargetError) as error:  # a recipe that diverges or misses has lost; the others go on
            failed[recipe.name] = str(error)
            log.warning("attempt %d: recipe %s: %s", step.number + 1, recipe.name, error)
    if not settings.prune.recipes:
        try:
            candidates.append(_as_it_is(settings, workspace, taken, example))
        except ModelError as error:
            failed[NO_TRAINING] = str(error)
    if not candidates:
        reached = last.reached if last else 0.0
        return Row(attempt=step.number, goal=step.goal, reached=reached, accepted=False, failed=failed)
    best = max(candidates, key=lambda one: (one.measured.accuracy, -one.measured.loss))
    accepted = best.measured.accuracy >= floor - _ROUNDING
    latency = None
    if goals.name_latency:
        measured = accepted and settings.prune.measures_latency
        latency = estimate_latency(best.model, teacher, settings, workspace, example, measured=measured)
    row = Row(
        attempt=step.number,
        goal=step.goal,
        reached=_reached(taken, best.measured, latency, step, ledger, goals),
        accepted=accepted,
        measured=best.measured,
        recipe=best.recipe,
        recipes={one.recipe: one.measured.accuracy for one in candidates},
        failed=failed,
        unrounded=dict(taken.unrounded) if taken.unrounded else None,
        predicted_ms=latency.predicted_ms if latency else None,
        latency_ratio=latency.ratio if latency else None,
    )
    if not accepted:
        return row
    name = f"{len(ledger.accepted) + 1:02d}"
    digest = save_model(iterations / name, best.model, plan.then(taken.plan), best.measured, data.fingerprint)
    if settings.prune.channels_may_return:
        whole = expand(best.model, taken.plan, pruning.find_groups(model, example))
        save_checkpoint(iterations / name / WHOLE, whole, plan)
    return row.model_copy(update={"checkpoint": name, "weights_sha256": digest})


def _start(settings: Settings, workspace: Workspace, data: Description, example: Tensor) -> nn.Module | None:
    """Return the model whose weights training begins with; None keeps the last ones."""
    start = settings.prune.begins_with
    if start.weights == "keep":
        return None
    if start.epoch is not None:
        model, _, _ = load_model(epoch_folder(workspace, start.epoch), settings, data, example)
        return model
    return make_factory(settings, data)().to(settings.run.device)


def _as_it_is(settings: Settings, workspace: Workspace, taken: Step, example: Tensor) -> _Candidate:
    """Measure what a step made, where nothing is trained."""
    measured = measure(taken.model, read_split(workspace, "validation"), settings, example)
    return _Candidate(NO_TRAINING, taken.model, measured)


def _reached(
    taken: Step,
    measured: ModelMetrics,
    latency: LatencyEstimate | None,
    step: Attempt,
    ledger: Ledger,
    goals: Goals,
) -> float:
    if taken.reached is not None:
        return taken.reached
    reductions = measured.reduction_from(ledger.baseline)
    if latency is not None:
        asked = goals.at(step.goal)
        reductions |= {kind: latency.reduction(asked[kind]) for kind in LATENCY if kind in asked}
    return goals.reached(reductions)


def _recover(
    settings: Settings,
    workspace: Workspace,
    taken: Step,
    recipe: Recipe,
    teacher: nn.Module,
    number: int,
    example: Tensor,
    checkpointer: EpochCheckpointer,
) -> _Candidate:
    """Fine-tune a copy by one recipe and measure it; a training that was killed goes on after its last epoch."""
    model = copy.deepcopy(taken.model)
    loss, _ = loss_and_metric(settings)
    with shown(f"attempt {number + 1}: {recipe.name}") as progress:
        callbacks = Callbacks(progress=progress, checkpointer=checkpointer)

        def train(model: nn.Module, **hooks: Any) -> None:
            finetune(
                model,
                read_split(workspace, "train"),
                recipe,
                loss=loss,
                seed=settings.run.seed + 1 + number,
                teacher=teacher,
                augment=augmentation(settings),
                callbacks=replace(callbacks, **hooks),
            )

        taken.train(model, recipe, train)
    return _Candidate(recipe.name, model, measure(model, read_split(workspace, "validation"), settings, example))
