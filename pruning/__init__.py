"""Structured pruning of PyTorch models: exact or refused.

    groups = pruning.find_groups(model, example_inputs)
    plan = pruning.make_plan(groups, criterion="l2_norm", channel_sparsity=0.3)
    dense = pruning.narrow(model, plan, example_inputs)
    pruning.reconstruct(dense, model, plan, groups, inputs)

A library of its own: it knows torch and nothing of pipelines.
"""

from __future__ import annotations

from pruning.calibration import calibrate
from pruning.cost import count_bytes, count_macs, count_parameters
from pruning.finding import find_groups
from pruning.gates import add_gates
from pruning.groups import Group, Groups, Slice
from pruning.masks import apply_masks
from pruning.optimizers import narrow_optimizer
from pruning.plan import Plan
from pruning.reconstruction import reconstruct
from pruning.selection import make_plan
from pruning.single_weights import choose_n_of_m, choose_weights
from pruning.surgery import narrow
from pruning.weight_masks import held
from pruning.widening import widen

__all__ = [
    "Group",
    "Groups",
    "Plan",
    "Slice",
    "add_gates",
    "apply_masks",
    "calibrate",
    "choose_n_of_m",
    "choose_weights",
    "count_bytes",
    "count_macs",
    "count_parameters",
    "find_groups",
    "held",
    "make_plan",
    "narrow",
    "narrow_optimizer",
    "reconstruct",
    "widen",
]
