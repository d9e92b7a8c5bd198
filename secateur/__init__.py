"""Prune trained PyTorch models exactly: the library's public names.

    import secateur

    groups = secateur.find_groups(model, example_inputs)
    plan = secateur.make_plan(groups, "l2_norm", secateur.MacReduction(0.5))
    dense = secateur.narrow(model, plan, example_inputs)

`import secateur` takes milliseconds: torch is imported by the first name that needs it. The pipeline is the command
`secateur`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruning import (
        Block,
        Blocks,
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
        choose_depth,
        choose_n_of_m,
        choose_weights,
        collect,
        count_bytes,
        count_macs,
        count_parameters,
        enforce_masks,
        errors,
        expand,
        find_blocks,
        find_groups,
        make_plan,
        narrow,
        narrow_optimizer,
        reconstruct,
        score_blocks,
    )
    from pruning.batches import Batches, DatasetBatches, TensorBatches
    from pruning.evaluation import Evaluation, evaluate
    from pruning.io.checkpoint import load_checkpoint, save_checkpoint
    from pruning.io.huggingface_folder import from_pretrained
    from pruning.io.onnx import dynamic_axes, export_onnx
    from pruning.io.parity import check_parity
    from pruning.io.weights import load_weights
    from pruning.latency.measure import profile
    from pruning.recovery.calibrate import recalibrate
    from pruning.task import Task
    from pruning.training.recipe import Recipe
    from pruning.training.trainer import finetune
    from zoo.datasets.splits import DataModule, Samples, Splits

__version__ = "0.1.0"

_ELSEWHERE = {
    "pruning.batches": ("Batches", "DatasetBatches", "TensorBatches"),
    "pruning.evaluation": ("Evaluation", "evaluate"),
    "pruning.io.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "pruning.io.huggingface_folder": ("from_pretrained",),
    "pruning.io.onnx": ("dynamic_axes", "export_onnx"),
    "pruning.io.parity": ("check_parity",),
    "pruning.io.weights": ("load_weights",),
    "pruning.recovery.calibrate": ("recalibrate",),
    "pruning.task": ("Task",),
    "pruning.latency.measure": ("profile",),
    "pruning.training.trainer": ("finetune",),
    "pruning.training.recipe": ("Recipe",),
    "zoo.datasets.splits": ("DataModule", "Samples", "Splits"),
}
_PLACES = {name: module for module, names in _ELSEWHERE.items() for name in names}
"""Public names that `pruning` itself doesn't have -> their modules."""

__all__ = [
    "Batches",
    "Block",
    "Blocks",
    "ChannelSparsity",
    "DataModule",
    "DatasetBatches",
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
    "Task",
    "TensorBatches",
    "__version__",
    "add_gates",
    "apply_masks",
    "calibrate",
    "check_parity",
    "choose_depth",
    "choose_n_of_m",
    "choose_weights",
    "collect",
    "count_bytes",
    "count_macs",
    "count_parameters",
    "dynamic_axes",
    "enforce_masks",
    "errors",
    "evaluate",
    "expand",
    "export_onnx",
    "find_blocks",
    "find_groups",
    "finetune",
    "from_pretrained",
    "load_checkpoint",
    "load_weights",
    "make_plan",
    "narrow",
    "narrow_optimizer",
    "profile",
    "recalibrate",
    "reconstruct",
    "save_checkpoint",
    "score_blocks",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Raises:
        ModuleNotFoundError: It needs a package of an optional extra, which the message names.
    """
    if name not in __all__:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    from secateur.packages import named

    with named(f"secateur.{name}"):
        found = getattr(import_module(_PLACES.get(name, "pruning")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
