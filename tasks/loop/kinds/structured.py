"""Structured pruning: channels go, and the model gets narrower."""

from __future__ import annotations

from torch import nn

import pruning
from pruning.training.recipe import Recipe
from tasks.loop.kinds.allocation import choose_channels
from tasks.loop.kinds.recovery import recover
from tasks.loop.kinds.step import Situation, Step, Train
from tasks.models import sparsity_training


def narrow_channels(situation: Situation) -> Step:
    """Remove channels for good, and recover what can be recovered without training.

    Raises:
        TargetError: The goal can't be met.
    """
    settings, example = situation.settings, situation.example
    groups = pruning.find_groups(situation.model, example)
    chosen, unrounded, statistics = choose_channels(situation, groups)
    if situation.start is None:
        narrowed = pruning.narrow(situation.model, chosen, example, groups=groups)
    else:
        narrowed = pruning.narrow(situation.start, situation.plan.then(chosen), example)
    recover(narrowed, chosen, groups, statistics, situation)

    def train(model: nn.Module, recipe: Recipe, finetune: Train) -> None:
        sparsity = sparsity_training(recipe, model, example, settings.prune.ignore)
        finetune(model=model, after_step=sparsity, memory=sparsity)

    return Step(narrowed, chosen, train, unrounded=unrounded)
