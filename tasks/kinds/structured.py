"""Structured pruning: channels go, and the model gets narrower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

import pruning
from pruning.allocation import allocate
from pruning.bundles import Limits, find_bundles
from pruning.cost import Cost
from pruning.criteria import find_criterion, order_channels
from pruning.groups import Groups
from pruning.plan import Plan
from pruning.recalibration import recalibrate
from pruning.recipe import Recipe
from pruning.statistics import collect
from tasks.analyze import read_curves
from tasks.data import read_split
from tasks.kinds.step import Situation, Step, Train
from tasks.models import chosen_criterion, loss_and_metric, sparsity_training


def narrow_channels(situation: Situation) -> Step:
    """Remove channels for good, and measure the batch norms anew.

    Raises:
        TargetError: The goal can't be met.
    """
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
