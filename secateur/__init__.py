"""Prune trained PyTorch models exactly: the library's public names.

    import secateur

    groups = secateur.find_groups(model, example_inputs)
    plan = secateur.make_plan(groups, "l2_norm", secateur.MacReduction(0.5))
    dense = secateur.narrow(model, plan, example_inputs)

Nothing is imported before it is used: `import secateur` takes milliseconds, the first name that needs torch imports it.
The pipeline is the command `secateur`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning import (
        ChannelSparsity,
        Group,
        Groups,
        LatencyMs,
        LatencyReduction,
        Limits,
        MacReduction,
        ParameterReduction,
        Plan,
        Scope,
        Slice,
        add_gates,
        apply_masks,
        calibrate,
        choose_n_of_m,
        choose_weights,
        collect,
        count_bytes,
        count_macs,
        count_parameters,
        errors,
        find_groups,
        held,
        make_plan,
        narrow,
        narrow_optimizer,
        reconstruct,
        widen,
    )
    from pruning.evaluation import Evaluation, evaluate
    from pruning.files.checkpoint import load_checkpoint, save_checkpoint
    from pruning.files.export import check_parity, export_onnx
    from pruning.files.weights import load_weights
    from pruning.recovery.recalibration import recalibrate
    from pruning.timing.profiling import profile
    from pruning.training.epochs import finetune
    from pruning.training.recipe import Recipe
    from zoo.datasets.splits import Samples, Splits

__version__ = "0.1.0"

_MODULES = {
    "pruning": (
        *("ChannelSparsity", "LatencyMs", "LatencyReduction", "Limits", "MacReduction", "ParameterReduction"),
        *("Scope", "collect"),
        *("Group", "Groups", "Plan", "Slice", "add_gates", "apply_masks", "calibrate", "choose_n_of_m"),
        *("choose_weights", "count_bytes", "count_macs", "count_parameters", "find_groups", "held", "make_plan"),
        *("narrow", "narrow_optimizer", "reconstruct", "widen"),
    ),
    "pruning.evaluation": ("Evaluation", "evaluate"),
    "pruning.files.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "pruning.files.export": ("check_parity", "export_onnx"),
    "pruning.files.weights": ("load_weights",),
    "pruning.recovery.recalibration": ("recalibrate",),
    "pruning.timing.profiling": ("profile",),
    "pruning.training.epochs": ("finetune",),
    "pruning.training.recipe": ("Recipe",),
    "zoo.datasets.splits": ("Samples", "Splits"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ChannelSparsity",
    "Evaluation",
    "Group",
    "Groups",
    "LatencyMs",
    "LatencyReduction",
    "Limits",
    "MacReduction",
    "ParameterReduction",
    "Plan",
    "Recipe",
    "Samples",
    "Scope",
    "Slice",
    "Splits",
    "__version__",
    "add_gates",
    "apply_masks",
    "calibrate",
    "check_parity",
    "choose_n_of_m",
    "choose_weights",
    "collect",
    "count_bytes",
    "count_macs",
    "count_parameters",
    "errors",
    "evaluate",
    "export_onnx",
    "find_groups",
    "finetune",
    "held",
    "load_checkpoint",
    "load_weights",
    "make_plan",
    "narrow",
    "narrow_optimizer",
    "profile",
    "recalibrate",
    "reconstruct",
    "save_checkpoint",
    "widen",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Raises:
        ModuleNotFoundError: It needs a package of an optional extra, which the message names.
    """
    if name == "errors":
        return import_module("pruning.errors")
    if name not in _PLACES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    from secateur.extras import named

    with named(f"secateur.{name}"):
        found = getattr(import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
