"""Structured pruning of PyTorch models: exact or refused.

    groups = pruning.find_groups(model, example_inputs)
    plan = pruning.make_plan(groups, criterion="l2_norm", channel_sparsity=0.3)
    dense = pruning.narrow(model, plan, example_inputs)
    pruning.reconstruct(dense, model, plan, groups, inputs)

A library of its own: it knows torch and nothing of pipelines. A name is imported when it is first used: who asks for
`pruning.errors` alone doesn't wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning.allocation.budget import ChannelSparsity, LatencyMs, LatencyReduction, MacReduction, ParameterReduction
    from pruning.allocation.depth import choose_depth, score_blocks
    from pruning.allocation.selection import Scope, make_plan
    from pruning.dynamic.gates import add_gates
    from pruning.graph.groups import Group, Groups, Slice
    from pruning.plan.blocks import Block, Blocks, find_blocks
    from pruning.plan.constraints import Limits
    from pruning.plan.dry_run import find_groups
    from pruning.plan.masks import apply_masks
    from pruning.plan.narrow import expand, narrow
    from pruning.plan.plan import Plan, count_bytes, count_macs, count_parameters
    from pruning.recovery.calibrate import calibrate
    from pruning.recovery.reconstruct import reconstruct
    from pruning.statistics.collect import collect
    from pruning.training.optimizer import narrow_optimizer
    from pruning.unstructured.masks import choose_n_of_m, choose_weights, enforce_masks

__all__ = [
    "Block",
    "Blocks",
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
    "choose_depth",
    "choose_n_of_m",
    "choose_weights",
    "collect",
    "count_bytes",
    "count_macs",
    "count_parameters",
    "enforce_masks",
    "expand",
    "find_blocks",
    "find_groups",
    "make_plan",
    "narrow",
    "narrow_optimizer",
    "reconstruct",
    "score_blocks",
]

_ELSEWHERE = {
    "pruning.allocation.budget": (
        "ChannelSparsity",
        "LatencyMs",
        "LatencyReduction",
        "MacReduction",
        "ParameterReduction",
    ),
    "pruning.allocation.depth": ("choose_depth", "score_blocks"),
    "pruning.allocation.selection": ("Scope", "make_plan"),
    "pruning.dynamic.gates": ("add_gates",),
    "pruning.graph.groups": ("Group", "Groups", "Slice"),
    "pruning.plan.constraints": ("Limits",),
    "pruning.plan.blocks": ("Block", "Blocks", "find_blocks"),
    "pruning.plan.dry_run": ("find_groups",),
    "pruning.plan.masks": ("apply_masks",),
    "pruning.plan.narrow": ("expand", "narrow"),
    "pruning.plan.plan": ("Plan", "count_bytes", "count_macs", "count_parameters"),
    "pruning.recovery.calibrate": ("calibrate",),
    "pruning.recovery.reconstruct": ("reconstruct",),
    "pruning.statistics.collect": ("collect",),
    "pruning.training.optimizer": ("narrow_optimizer",),
    "pruning.unstructured.masks": ("choose_n_of_m", "choose_weights", "enforce_masks"),
}
_PLACES = {name: module for module, names in _ELSEWHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module 'pruning' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
