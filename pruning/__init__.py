"""Structured pruning of PyTorch models: exact or refused.

    groups = pruning.find_groups(model, example_inputs)
    plan = pruning.make_plan(groups, criterion="l2_norm", channel_sparsity=0.3)
    dense = pruning.narrow(model, plan, example_inputs)
    pruning.reconstruct(dense, model, plan, groups, inputs)

A library of its own: it knows torch and nothing of pipelines.
"""

from __future__ import annotations

from pruning.allocation.budget import ChannelSparsity, LatencyMs, LatencyReduction, MacReduction, ParameterReduction
from pruning.allocation.selection import Scope, make_plan
from pruning.dynamic.gates import add_gates
from pruning.graph.groups import Group, Groups, Slice
from pruning.plan.constraints import Limits
from pruning.plan.dry_run import find_groups
from pruning.plan.masks import apply_masks
from pruning.plan.narrow import expand, narrow
from pruning.plan.plan import Plan, count_bytes, count_macs, count_parameters
from pruning.recovery.calibrate import calibrate
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import collect
from pruning.training.optimizer import narrow_optimizer
from pruning.unstructured.masks import enforce_masks
from pruning.unstructured.select import choose_n_of_m, choose_weights

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
    "enforce_masks",
    "expand",
    "find_groups",
    "make_plan",
    "narrow",
    "narrow_optimizer",
    "reconstruct",
]
