"""Structured pruning: channels go, and the model gets narrower."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import pruning
from pruning.training.recipe import Recipe
from tasks.data import read_split, spread
from tasks.loop.kinds.allocation import choose_channels
from tasks.loop.kinds.recovery import recover
from tasks.loop.kinds.step import Situation, Step, Train
from tasks.models import sparsity_training

_VERIFIED_ON, _BATCH = 64, 16  # samples, where verifying on the example shows nothing


def narrow_channels(situation: Situation) -> Step:
    """Remove channels for good, and recover what can be recovered without training.

    Raises:
        TargetError: The goal can't be met.
    """
    settings, example = situation.settings, situation.example
    groups = pruning.find_groups(situation.model, example)
    chosen, unrounded, statistics = choose_channels(situation, groups)
    if situation.start is None:
        narrowed = pruning.narrow(situation.model, chosen, example, groups=groups, samples=_batches(situation))
    else:
        whole = situation.plan.then(chosen)
        narrowed = pruning.narrow(situation.start, whole, example, samples=_batches(situation))
    recover(narrowed, chosen, groups, statistics, situation)

    def train(model: nn.Module, recipe: Recipe, finetune: Train) -> None:
        sparsity = sparsity_training(recipe, model, example, settings.prune.ignore)
        finetune(model, after_step=sparsity, memory=sparsity)

    return Step(narrowed, chosen, train, unrounded=unrounded)


def _batches(situation: Situation) -> Iterator[Tensor]:
    """Training samples, read only where verifying on the example shows nothing."""
    samples = spread(read_split(situation.workspace, "train"), _VERIFIED_ON)
    yield from torch.split(samples.inputs.to(situation.example.device), _BATCH)
