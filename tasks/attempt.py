"""One attempt of the loop: choose what goes, narrow, recalibrate, fine-tune by each recipe, measure."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

import pruning
from pruning.allocation import allocate
from pruning.bundles import Limits, find_bundles
from pruning.cost import Cost
from pruning.criteria import find_criterion, order_channels
from pruning.errors import ModelError, TargetError
from pruning.groups import Groups
from pruning.plan import Plan
from pruning.recalibration import recalibrate
from pruning.recipe import Recipe
from pruning.schedule import Attempt
from pruning.sensitivity import Curve
from pruning.statistics import collect
from pruning.training import finetune
from tasks.analyze import read_curves
from tasks.data import read_description, read_split
from tasks.ledger import Ledger, Row
from tasks.measured import Measured
from tasks.models import (
    augmentation,
    begin,
    chosen_criterion,
    example_inputs,
    load_model,
    loss_and_metric,
    measure,
    save_model,
)
from tasks.progress import shown
from tasks.settings import Settings
from tasks.workspace import Workspace

_ROUNDING = 1e-9

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class _Candidate:
    """A recipe's result."""

    recipe: str
    model: nn.Module
    measured: Measured


def attempt(settings: Settings, workspace: Workspace, ledger: Ledger, step: Attempt, floor: float) -> Row:
    """Go from the last accepted model to the step's goal, and judge.

    Args:
        settings: Of the run.
        workspace: An accepted attempt's checkpoint is written into it.
        ledger: What came before; not changed.
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
    model, plan, _ = load_model(parent, settings, data, example)
    groups = pruning.find_groups(model, example)
    try:
        chosen = _choose(settings, workspace, groups, ledger.baseline, step.goal)
    except TargetError as error:
        reached = last.reached if last else 0.0
        return Row(attempt=step.number, goal=step.goal, reached=reached, accepted=False, refused=str(error))
    narrowed = pruning.narrow(model, chosen, example, groups=groups)
    recalibrate(
        narrowed,
        read_split(workspace, "train"),
        num_samples=settings.prune.recalibrate.num_samples,
        batch_size=settings.training.batch_size,
    )
    teacher, _, _ = load_model(baseline_folder, settings, data, example)
    candidates, faults = [], []
    for recipe in settings.prune.recipes:
        try:
            candidates.append(_recover(settings, workspace, narrowed, recipe, teacher, step.number, example))
        except ModelError as error:  # a recipe that diverges has lost; the others go on
            faults.append(f"{recipe.name}: {error}")
            log.warning("attempt %d: recipe %s", step.number + 1, faults[-1])
    if not candidates:
        reached = last.reached if last else 0.0
        return Row(attempt=step.number, goal=step.goal, reached=reached, accepted=False, refused="; ".join(faults))
    best = max(candidates, key=lambda one: (one.measured.accuracy, -one.measured.loss))
    accepted = best.measured.accuracy >= floor - _ROUNDING
    row = Row(
        attempt=step.number,
        goal=step.goal,
        reached=best.measured.reduction_from(ledger.baseline)[settings.prune.target.kind],
        accepted=accepted,
        measured=best.measured,
        recipe=best.recipe,
        recipes={one.recipe: one.measured.accuracy for one in candidates},
    )
    if not accepted:
        return row
    name = f"{len(ledger.accepted) + 1:02d}"
    digest = save_model(iterations / name, best.model, plan.then(chosen), best.measured, data.fingerprint)
    return row.model_copy(update={"checkpoint": name, "weights_sha256": digest})


def _choose(settings: Settings, workspace: Workspace, groups: Groups, baseline: Measured, goal: float) -> Plan:
    """Let curves and cost decide how much each group gives, and the criterion which channels."""
    chosen, cost = settings.prune, Cost(groups)
    criterion = chosen_criterion(chosen.criterion)
    loss, _ = loss_and_metric(settings)
    train = read_split(workspace, "train")
    statistics = collect(groups, find_criterion(criterion).needs, train, loss, seed=settings.run.seed)
    bundles = find_bundles(groups, Limits(ignore=chosen.ignore))
    free = {name for bundle in bundles if len(bundle.counts) > 1 for name in bundle.names}
    orders: Mapping[str, Sequence[int]] = {
        group.name: order_channels(criterion, group, statistics) for group in groups if group.name in free
    }
    measures = {
        "mac_reduction": (cost.macs, baseline.macs),
        "parameter_reduction": (cost.parameters, baseline.parameters),
        "size_bytes": (cost.size_bytes, baseline.size_bytes),
    }
    quantity, whole = measures[chosen.target.kind]
    curves: Sequence[Curve] = read_curves(workspace)
    return allocate(
        groups,
        curves,
        orders,
        measure=quantity,
        at_most=(1 - goal) * whole,
        name=f"a reduction of {goal:.4f} ({chosen.target.kind})",
        max_group_rate=chosen.max_group_rate,
        keep_at_least=chosen.keep_at_least,
        round_to=chosen.round_to,
        ignore=chosen.ignore,
    )


def _recover(
    settings: Settings,
    workspace: Workspace,
    narrowed: nn.Module,
    recipe: Recipe,
    teacher: nn.Module,
    number: int,
    example: Tensor,
) -> _Candidate:
    """Fine-tune a copy by one recipe and measure it."""
    model = copy.deepcopy(narrowed)
    loss, _ = loss_and_metric(settings)
    with shown(f"attempt {number + 1}: {recipe.name}") as progress:
        finetune(
            model,
            read_split(workspace, "train"),
            recipe,
            loss=loss,
            seed=settings.run.seed + 1 + number,
            teacher=teacher,
            augment=augmentation(settings),
            progress=progress,
        )
    return _Candidate(recipe.name, model, measure(model, read_split(workspace, "validation"), settings, example))
