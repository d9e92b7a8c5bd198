"""Calibrate only: a smaller model from a model and a few hundred inputs, without labels and without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn

from pruning.allocation.budget import Target
from pruning.allocation.selection import PlanKeywords, make_plan
from pruning.containers import Inputs, count_samples, take
from pruning.evaluation import Progress
from pruning.graph.unwrapping import unwrap
from pruning.importance import Criteria
from pruning.plan.dry_run import find_groups
from pruning.plan.narrow import narrow
from pruning.plan.plan import Plan
from pruning.recovery.batch_norm import recalibrate
from pruning.recovery.least_squares import Refit
from pruning.recovery.reconstruct import RIDGE, reconstruct


@dataclass(frozen=True)
class Calibrated:
    """A model that was pruned without training.

    Attributes:
        model: the dense result.
        plan: what was removed from the original.
        refits: what reconstruction did to each layer.
    """

    model: nn.Module
    plan: Plan
    refits: tuple[Refit, ...]


def calibrate(
    model: nn.Module,
    inputs: Inputs,
    criterion: Criteria = "structured_obs",
    target: Target | None = None,
    *,
    ridge: float = RIDGE,
    recalibrate_norms: bool = False,
    batch_size: int = 64,
    progress: Progress | None = None,
    **plan_keywords: Unpack[PlanKeywords],
) -> Calibrated:
    """Choose, narrow and reconstruct.

    Batch norms keep the statistics that they were trained with, but for the means that reconstruction moves. Measured
    on a ResNet-20, recalibrating them afterwards cost 1 % of the accuracy at 70 % of the MACs removed, and 8 % at 85 %:
    least squares leaves less variance than there was, on purpose, and a new variance undoes that.

    Args:
        model: untouched.
        inputs: [N, ...], a few hundred, unlabelled, on any device; a tuple or dict where the model takes several.
        criterion: one that needs no labels, or several as for `make_plan`.
        target: as for `make_plan`.
        ridge: as for `reconstruct`.
        recalibrate_norms: recompute the batch norms' statistics in the end.
        batch_size: inputs per forward pass.
        progress: told after each layer that is reconstructed.
        plan_keywords: what `make_plan` takes: `mac_reduction` and its like, `scope`, `ignore`, `round_to`, `limits`.

    Raises:
        CriterionError: the criterion needs labels.
        TargetError: as for `make_plan`.
    """
    model = unwrap(model)
    number = count_samples(inputs)
    example = take(inputs, slice(1), next((tensor.device for tensor in model.parameters()), torch.device("cpu")))
    groups = find_groups(model, example)
    plan = make_plan(groups, criterion, target, samples=inputs, **plan_keywords)
    dense = narrow(model, plan, example, groups=groups)
    refits = reconstruct(dense, model, plan, groups, inputs, ridge=ridge, batch_size=batch_size, progress=progress)
    if recalibrate_norms:
        recalibrate(dense, inputs, num_samples=number, batch_size=batch_size)
    return Calibrated(dense, plan, refits)
