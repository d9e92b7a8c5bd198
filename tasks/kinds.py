"""The kinds of pruning: how each takes a step towards a goal, and what it asks of the training that follows.

What goes: whole channels (structured), single weights (unstructured), all but N of every M weights (n_m), or for each
input other channels, which gates choose (dynamic).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import floor
from typing import Any, cast

from torch import Tensor, nn

import pruning
from pruning.allocation import allocate
from pruning.bundles import Limits, find_bundles
from pruning.cost import Cost
from pruning.criteria import find_criterion, order_channels
from pruning.errors import TargetError
from pruning.gate_training import GateTraining, calibrate_gates
from pruning.gates import GatedModel, add_gates
from pruning.groups import Groups
from pruning.plan import Plan
from pruning.recalibration import recalibrate
from pruning.recipe import Recipe
from pruning.single_weights import WeightMasks, choose_n_of_m, choose_weights, held, sparsity_of, zero_weights
from pruning.statistics import collect
from pruning.weight_criteria import WeightCriterion
from tasks.analyze import read_curves
from tasks.data import read_split
from tasks.ledger import Ledger
from tasks.models import chosen_criterion, loss_and_metric, sparsity_training
from tasks.settings import Settings
from tasks.workspace import Workspace

Train = Callable[..., Any]
"""`finetune`, but for the model and its hooks."""


@dataclass(frozen=True)
class Situation:
    """Where an attempt starts.

    Attributes:
        settings: Of the run.
        workspace: Data and curves lie in it.
        ledger: What came before.
        goal: The reduction to come to, against the baseline.
        model: The last accepted one; it is left as it is.
        example: One sample [1, ...].
    """

    settings: Settings
    workspace: Workspace
    ledger: Ledger
    goal: float
    model: nn.Module
    example: Tensor


@dataclass(frozen=True)
class Step:
    """A step taken, before training.

    Attributes:
        model: What it made of the last model.
        plan: Which channels of the last model are gone.
        train: Trains a copy of `model`, by a recipe, so that it stays what the step made it.
        reached: The reduction that it comes to; None where that is to be measured.
    """

    model: nn.Module
    plan: Plan
    train: Callable[[nn.Module, Recipe, Train], None]
    reached: float | None = None


def take_step(situation: Situation) -> Step:
    """Take a step of the kind that the settings name.

    Raises:
        TargetError: The goal can't be met.
    """
    return _KINDS[situation.settings.prune.kind](situation)


def _structured(situation: Situation) -> Step:
    settings, workspace, example = situation.settings, situation.workspace, situation.example
    groups = pruning.find_groups(situation.model, example)
    chosen = _choose(situation, groups)
    narrowed = pruning.narrow(situation.model, chosen, example, groups=groups)
    recalibrate(
        narrowed,
        read_split(workspace, "train"),
        num_samples=settings.prune.recalibrate.num_samples,
        batch_size=settings.training.batch_size,
    )

    def train(model: nn.Module, recipe: Recipe, finetune: Train) -> None:
        finetune(model=model, after_step=sparsity_training(recipe, model, example, settings.prune.ignore))

    return Step(narrowed, chosen, train)


def _choose(situation: Situation, groups: Groups) -> Plan:
    """Let curves and cost decide how much each group gives, and the criterion which channels."""
    settings, baseline = situation.settings, situation.ledger.baseline
    chosen, cost = settings.prune, Cost(groups)
    criterion = chosen_criterion(chosen.criterion)
    loss, _ = loss_and_metric(settings)
    train = read_split(situation.workspace, "train")
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
    return allocate(
        groups,
        read_curves(situation.workspace),
        orders,
        measure=quantity,
        at_most=(1 - situation.goal) * whole,
        name=f"a reduction of {situation.goal:.4f} ({chosen.target.kind})",
        max_group_rate=chosen.max_group_rate,
        keep_at_least=chosen.keep_at_least,
        round_to=chosen.round_to,
        ignore=chosen.ignore,
    )


def _unstructured(situation: Situation) -> Step:
    chosen = situation.settings.prune.weights
    choose = partial(choose_weights, scope=chosen.scope, max_layer_sparsity=chosen.max_layer_sparsity)
    return _without_weights(situation, partial(choose, weight_sparsity=situation.goal))


def _n_m(situation: Situation) -> Step:
    target, ledger = situation.settings.prune.target, situation.ledger
    assert target.pattern is not None, "the settings see to it"
    of = target.pattern.of
    before = round(ledger.accepted[-1].reached * of) if ledger.accepted else 0
    since = list(takewhile(lambda row: not row.accepted, reversed(ledger.rows)))
    failed = min((round(row.reached * of) for row in since if row.measured), default=of)
    num_gone = min(max(floor(situation.goal * of + 0.5), before + 1), failed - 1)
    if num_gone <= before:
        raise TargetError(
            f"no pattern of {of} lies between {of - before}:{of}, which is reached, and {of - failed}:{of}, "
            "which failed"
        )
    return _without_weights(situation, partial(choose_n_of_m, num_kept=of - num_gone, of=of))


def _without_weights(situation: Situation, choose: Callable[..., WeightMasks]) -> Step:
    settings = situation.settings
    groups = pruning.find_groups(situation.model, situation.example)
    masks = choose(
        groups,
        criterion=cast(str | WeightCriterion, chosen_criterion(settings.prune.criterion)),
        ignore=settings.prune.ignore,
        samples=read_split(situation.workspace, "train"),
        loss=loss_and_metric(settings)[0],
        seed=settings.run.seed,
    )
    model = copy.deepcopy(situation.model)
    zero_weights(model, masks)

    def train(model: nn.Module, _recipe: Recipe, finetune: Train) -> None:
        with held(model, masks):
            finetune(model=model)

    return Step(model, Plan(removed={}, sizes={}), train, sparsity_of(masks))


def _dynamic(situation: Situation) -> Step:
    settings, gated = situation.settings, situation.model
    if not isinstance(gated, GatedModel):
        gated, _ = add_gates(pruning.find_groups(situation.model, situation.example), ignore=settings.prune.ignore)
    cost = Cost(pruning.find_groups(gated.model, situation.example))
    macs = (1 - situation.goal) * situation.ledger.baseline.macs
    inputs = read_split(situation.workspace, "validation").inputs

    def train(model: nn.Module, _recipe: Recipe, finetune: Train) -> None:
        assert isinstance(model, GatedModel)
        training = GateTraining(model, cost, macs, weight=settings.prune.gates.weight, ramp=settings.prune.gates.ramp)
        finetune(model=model, penalty=training.penalty, after_step=training.after_step)
        calibrate_gates(model, cost, inputs, macs, batch_size=settings.training.batch_size)

    return Step(gated, Plan(removed={}, sizes={}), train)


_KINDS: dict[str, Callable[[Situation], Step]] = {
    "structured": _structured,
    "unstructured": _unstructured,
    "n_m": _n_m,
    "dynamic": _dynamic,
}
