"""The kinds of pruning: how each takes a step towards a goal, and what the training that follows has to keep.

Removed are whole channels (structured), single weights (unstructured), all but N of every M weights (n_m), or for each
input other channels, chosen by gates (dynamic).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import floor
from typing import cast

from torch import nn

import pruning
from pruning.allocation.selection import Tried
from pruning.dynamic.gates import GatedModel, GateTraining, add_gates, calibrate_gates
from pruning.errors import TargetError
from pruning.plan.plan import Cost, Plan
from pruning.training.recipe import Recipe
from pruning.unstructured.criteria import WeightCriterion
from pruning.unstructured.masks import WeightMasks, enforce_masks, sparsity_of, zero_weights
from pruning.unstructured.select import WeightScope, choose_n_of_m, choose_weights
from tasks.config.prune_schema import Dynamic, NOfM, Unstructured
from tasks.config.target_schema import Kind
from tasks.data import read_inputs, read_split, spread
from tasks.loop.channels import choose_channels, narrow_by, recover, structured
from tasks.loop.targets import StepContext
from tasks.models import chosen_criterion, loss_and_metric, sparsity_training

Train = Callable[..., None]
"""(model, **hooks): fine-tune it by the recipe at hand; hooks are fields of `pruning.training.trainer.Callbacks`."""


@dataclass(frozen=True)
class Step:
    """A step taken, before training.

    Attributes:
        model: The result.
        plan: Which channels of the last model are gone.
        train: Trains a copy of `model` by a recipe, keeping removed parts removed.
        reached: Its reduction; None if that has to be measured.
        unrounded: Channels that each group would have kept, had its count not been rounded; None where none was.
        relaxed: What was allowed, if the goal is out of reach within the first limits.
        streams: The residual streams that lose channels, by the names of their groups.
        tried: What came of each allocation, where several were tried.
    """

    model: nn.Module
    plan: Plan
    train: Callable[[nn.Module, Recipe, Train], None]
    reached: float | None = None
    unrounded: Mapping[str, int] | None = None
    relaxed: str | None = None
    streams: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()


def narrow_channels(context: StepContext) -> Step:
    """Remove channels for good, and recover what can be recovered without training.

    Raises:
        TargetError: The goal can't be met.
    """
    settings, example = context.settings, context.example
    choice, offered, freedom = choose_channels(context)
    chosen, groups = choice.plan, offered.groups
    narrowed = narrow_by(chosen, offered, context)
    recover(narrowed, chosen, offered, context)

    def train(model: nn.Module, recipe: Recipe, finetune: Train) -> None:
        sparsity = sparsity_training(recipe, model, example, settings.prune.ignore)
        finetune(model, after_step=sparsity, memory=sparsity)

    relaxed = None if freedom == structured(context).freedoms[0] else str(freedom)
    streams = tuple(name for name in chosen.removed if groups[name].mixed)
    return Step(
        narrowed,
        chosen,
        train,
        unrounded=choice.unrounded,
        relaxed=relaxed,
        streams=streams,
        tried=choice.tried,
    )


def zero_share(context: StepContext) -> Step:
    """Zero the share of single weights that is the goal.

    Raises:
        TargetError: The goal can't be met.
    """
    chosen = context.settings.prune
    assert isinstance(chosen, Unstructured), "`take_step` goes by the kind"
    scope = WeightScope(chosen.weights.scope, chosen.weights.max_layer_sparsity)
    return _without_weights(context, partial(choose_weights, scope=scope, weight_sparsity=context.goal))


def zero_all_but_n_of_m(context: StepContext) -> Step:
    """Go to the pattern of the target's M that is nearest to the goal, and at least one weight beyond the last.

    Raises:
        TargetError: What failed since the last accepted pattern is the next one, or M doesn't divide a layer.
    """
    target, ledger = context.settings.prune.target, context.ledger
    assert target.pattern is not None, "the settings see to it"
    of = target.pattern.of
    before = round(ledger.accepted[-1].reached * of) if ledger.accepted else 0
    since = list(takewhile(lambda row: not row.accepted, reversed(ledger.rows)))
    failed = min((round(row.reached * of) for row in since if row.measured), default=of)
    num_gone = min(max(floor(context.goal * of + 0.5), before + 1), failed - 1)
    if num_gone <= before:
        raise TargetError(
            f"no pattern of {of} lies between {of - before}:{of}, which is reached, and {of - failed}:{of}, "
            "which failed"
        )
    return _without_weights(context, partial(choose_n_of_m, num_kept=of - num_gone, of=of))


def _without_weights(context: StepContext, choose: Callable[..., WeightMasks]) -> Step:
    settings, chosen = context.settings, context.settings.prune
    assert isinstance(chosen, Unstructured | NOfM), "`take_step` goes by the kind"
    groups = pruning.find_groups(context.model, context.example)
    masks = choose(
        groups,
        criterion=cast(str | WeightCriterion, chosen_criterion(chosen.criterion)),
        ignore=chosen.ignore,
        samples=spread(read_split(context.workspace, "train"), chosen.criterion_samples),
        loss=loss_and_metric(settings)[0],
        seed=settings.run.seed,
    )
    model = copy.deepcopy(context.model if context.start is None else context.start)
    zero_weights(model, masks)

    def train(model: nn.Module, _recipe: Recipe, finetune: Train) -> None:
        with enforce_masks(model, masks):
            finetune(model)

    return Step(model, Plan(removed={}, sizes={}), train, sparsity_of(masks))


def gate_channels(context: StepContext) -> Step:
    """Put gates on the groups, or continue with existing gates, and train them to the goal.

    Raises:
        ModelError: No group can have a gate.
    """
    settings, chosen, gated = context.settings, context.settings.prune, context.model
    assert isinstance(chosen, Dynamic), "`take_step` goes by the kind"
    if not isinstance(gated, GatedModel):
        gated, _ = add_gates(pruning.find_groups(context.model, context.example), ignore=chosen.ignore)
    cost = Cost(pruning.find_groups(gated.model, context.example))
    macs = (1 - context.goal) * context.ledger.baseline.macs
    inputs = read_inputs(context.workspace, "validation")

    def train(model: nn.Module, _recipe: Recipe, finetune: Train) -> None:
        assert isinstance(model, GatedModel)
        training = GateTraining(model, cost, macs, weight=chosen.gates.weight, ramp=chosen.gates.ramp)
        finetune(model, penalty=training.penalty, after_step=training.after_step, memory=training)
        calibrate_gates(model, cost, inputs, macs, batch_size=settings.training.batch_size)

    return Step(gated, Plan(removed={}, sizes={}), train)


_KINDS: dict[Kind, Callable[[StepContext], Step]] = {
    "structured": narrow_channels,
    "unstructured": zero_share,
    "n_m": zero_all_but_n_of_m,
    "dynamic": gate_channels,
}


def take_step(context: StepContext) -> Step:
    """Take a step of the kind that the settings name.

    Raises:
        TargetError: The goal can't be met.
    """
    return _KINDS[context.settings.prune.kind](context)
