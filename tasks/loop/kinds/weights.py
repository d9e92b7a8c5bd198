"""Pruning of single weights: by a share of them, or to N of every M."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from math import floor
from typing import cast

from torch import nn

import pruning
from pruning.errors import TargetError
from pruning.fine_grained.single_weights import WeightScope, choose_n_of_m, choose_weights
from pruning.fine_grained.weight_criteria import WeightCriterion
from pruning.fine_grained.weight_masks import WeightMasks, held, sparsity_of, zero_weights
from pruning.structure.plan import Plan
from pruning.training.recipe import Recipe
from tasks.data import read_split, spread
from tasks.loop.kinds.step import Situation, Step, Train
from tasks.models import chosen_criterion, loss_and_metric


def zero_share(situation: Situation) -> Step:
    """Zero the share of single weights that is the goal.

    Raises:
        TargetError: The goal can't be met.
    """
    chosen = situation.settings.prune.weights
    scope = WeightScope(chosen.scope, chosen.max_layer_sparsity)
    return _without_weights(situation, partial(choose_weights, scope=scope, weight_sparsity=situation.goal))


def zero_all_but_n_of_m(situation: Situation) -> Step:
    """Go to the pattern of the target's M that is nearest to the goal, and at least one weight beyond the last.

    Raises:
        TargetError: What failed since the last accepted pattern is the next one, or M doesn't divide a layer.
    """
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
        samples=spread(read_split(situation.workspace, "train"), settings.prune.criterion_samples),
        loss=loss_and_metric(settings)[0],
        seed=settings.run.seed,
    )
    model = copy.deepcopy(situation.model if situation.start is None else situation.start)
    zero_weights(model, masks)

    def train(model: nn.Module, _recipe: Recipe, finetune: Train) -> None:
        with held(model, masks):
            finetune(model)

    return Step(model, Plan(removed={}, sizes={}), train, sparsity_of(masks))
