"""Dynamic pruning: gates choose the channels of each input."""

from __future__ import annotations

from torch import nn

import pruning
from pruning.dynamic.gate_training import GateTraining, calibrate_gates
from pruning.dynamic.gates import GatedModel, add_gates
from pruning.structure.cost import Cost
from pruning.structure.plan import Plan
from pruning.training.recipe import Recipe
from tasks.data import read_inputs
from tasks.loop.kinds.step import Situation, Step, Train


def gate_channels(situation: Situation) -> Step:
    """Put gates on the groups, or go on with those that are there, and train them to the goal.

    Raises:
        ModelError: No group can have a gate.
    """
    settings, gated = situation.settings, situation.model
    if not isinstance(gated, GatedModel):
        gated, _ = add_gates(pruning.find_groups(situation.model, situation.example), ignore=settings.prune.ignore)
    cost = Cost(pruning.find_groups(gated.model, situation.example))
    macs = (1 - situation.goal) * situation.ledger.baseline.macs
    inputs = read_inputs(situation.workspace, "validation")

    def train(model: nn.Module, _recipe: Recipe, finetune: Train) -> None:
        assert isinstance(model, GatedModel)
        training = GateTraining(model, cost, macs, weight=settings.prune.gates.weight, ramp=settings.prune.gates.ramp)
        finetune(model, penalty=training.penalty, after_step=training.after_step, memory=training)
        calibrate_gates(model, cost, inputs, macs, batch_size=settings.training.batch_size)

    return Step(gated, Plan(removed={}, sizes={}), train)
