"""Structured pruning of PyTorch models: exact or refused.

    groups = pruning.find_groups(model, example_inputs)
    plan = pruning.make_plan(groups, criterion="l2_norm", channel_sparsity=0.3)
    dense = pruning.narrow(model, plan, example_inputs)
    pruning.reconstruct(dense, model, plan, groups, inputs)

A library of its own: it knows torch and nothing of pipelines.
"""

from __future__ import annotations

from pruning.choosing.selection import Scope, make_plan
from pruning.choosing.targets import ChannelSparsity, LatencyMs, LatencyReduction, MacReduction, ParameterReduction
from pruning.dynamic.gates import add_gates
from pruning.fine_grained.single_weights import choose_n_of_m, choose_weights
from pruning.fine_grained.weight_masks import held
from pruning.gathering.statistics import collect
from pruning.recovery.calibration import calibrate
from pruning.recovery.reconstruction import reconstruct
from pruning.recovery.widening import widen
from pruning.structure.bundles import Limits
from pruning.structure.cost import count_bytes, count_macs, count_parameters
from pruning.structure.finding import find_groups
from pruning.structure.groups import Group, Groups, Slice
from pruning.structure.masks import apply_masks
from pruning.structure.plan import Plan
from pruning.structure.surgery import narrow
from pruning.training.optimizers import narrow_optimizer

__all__ = [
    "ChannelSparsity",
    "Group",
    "Groups",
    "LatencyMs",
    "LatencyReduction",
    "Limits",
    "MacReduction",
    "ParameterReduction",
    "Plan",
    "Scope",
    "Slice",
    "add_gates",
    "apply_masks",
    "calibrate",
    "choose_n_of_m",
    "choose_weights",
    "collect",
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
