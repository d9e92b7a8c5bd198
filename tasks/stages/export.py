"""Write baseline and dense model as ONNX files, and prove that each computes what its torch model computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from pruning.batches import Batches
from pruning.containers import Inputs, as_call, named_outputs
from pruning.dynamic.gates import GatedModel
from pruning.errors import ExportError, WorkspaceError
from pruning.graph.module_copy import copy_whole
from pruning.io.onnx import dynamic_axes, export_onnx
from pruning.io.parity import Parity, check_parity
from pruning.plan.verification import TOLERANCE, comparable_outputs, outputs_of
from tasks.config.schema import Settings
from tasks.data import Description, read_description, read_inputs, task_of
from tasks.determinism import begin
from tasks.models import axes_that_differ, example_inputs, load_model, resized
from tasks.terminal import command_line
from tasks.workspace import Json, Workspace, write_json, writing
from zoo.datasets.splits import tensors_of

FOLDER = "onnx"
PARITY = "parity.json"
FILES = {"dense": "model.onnx", "baseline": "baseline.onnx"}
_CLOSE_WITH_GATES = 0.99
_NUM_TRIED = 7  # samples, on which other sizes are tried

log = logging.getLogger("secateur")


def export(settings: Settings, workspace: Workspace) -> None:
    """Write `model.onnx`, `baseline.onnx` (for the benchmark) and `parity.json`.

    Raises:
        ExportError: A model can't be exported, or its file computes something else.
    """
    begin(settings)
    data = read_description(workspace)
    example = example_inputs(workspace, settings)
    inputs = read_inputs(settings, workspace, "validation")
    parities, dynamic, left_out, by_class = {}, list[str](), dict[str, str](), task_of(settings).by_class
    with writing(workspace.folder(FOLDER)) as folder:
        for stage, file in FILES.items():
            model, _, _ = load_model(workspace.folder(stage), settings, data, example)
            path, axes = _write(model, inputs, folder / file, settings, data)
            with torch.no_grad():
                args, kwargs = as_call(example)
                left_out = named_outputs(model(*args, **kwargs))[1]
            parity = check_parity(path, model, inputs, by_class=by_class)
            # A gate whose logit is within rounding of zero may fall to either side: a few samples may differ then.
            enough = parity.close >= _CLOSE_WITH_GATES and isinstance(model, GatedModel)
            if not (parity.max_relative_difference < TOLERANCE or enough):
                each = ", ".join(f"{name} by {one:.2e}" for name, one in (parity.outputs or {}).items())
                raise ExportError(
                    f"{file} differs from the {stage} model by {parity.max_relative_difference:.2e} (relative"
                    f"{f'; {each}' if each else ''}), "
                    f"{parity.close:.2%} of the samples are within {TOLERANCE:.0e}; expected all of them"
                )
            parities[stage], dynamic = (
                parity,
                ["batch", *dict.fromkeys(n for one in axes.values() for n in one.values())],
            )
        write_json(folder / PARITY, {stage: _as_json(parity) for stage, parity in parities.items()})
    for name, kind in left_out.items():
        log.warning("export: output %r isn't in the file: it is a %s, which isn't looked into for tensors", name, kind)
    dense = parities["dense"]
    agree = "" if dense.top1_agreement is None else f", top-1 agrees on {dense.top1_agreement:.1%} of validation"
    several = f" over {len(dense.outputs)} outputs" if dense.outputs else ""
    log.info(
        "export: opset %d, dynamic %s; ONNX and torch differ by %.1e (relative) at most%s%s",
        *(settings.export.opset, " and ".join(dynamic), dense.max_relative_difference, several, agree),
    )


def _as_json(parity: Parity) -> Json:
    return {name: value for name, value in asdict(parity).items() if name != "outputs" or value is not None}


def _write(
    model: nn.Module, inputs: Batches, path: Path, settings: Settings, data: Description
) -> tuple[Path, dict[str, dict[int, str]]]:
    """Export a model with the first of the choices of dynamic axes that it allows; return them too."""
    some = inputs.first(_NUM_TRIED).inputs
    opset, whole = settings.export.opset, copy_whole(model).cpu().eval()
    for other in _offered(some, settings):
        if comparable_outputs(outputs_of, whole, other) is None:
            continue
        axes = axes_that_differ(model, some, data)
        for name, found in dynamic_axes(some, other, model).items():
            axes[name] = {**found, **axes.get(name, {})}
        try:
            export_onnx(model, some, path, opset=opset, axes=axes)
            parity = check_parity(path, whole, other, by_class=False)
        except ExportError as fault:
            log.debug("export: %s", fault)
            continue
        if parity.max_relative_difference < TOLERANCE:
            return path, axes
    axes = axes_that_differ(model, some, data)
    return export_onnx(model, some, path, opset=opset, axes=axes), axes


def _offered(some: Inputs, settings: Settings) -> Iterator[Inputs]:
    """Yield the same inputs in other sizes: each is what a model may allow, the most first."""
    tensors = tensors_of(some)
    lengths = {one.shape[1] for one in tensors.values() if one.ndim == 2 and one.dtype == torch.int64} - {1}

    def is_length(key: str, axis: int) -> bool:
        return tensors[key].shape[axis] in lengths

    def is_side(key: str, axis: int) -> bool:
        return tensors[key].ndim == 4 and tensors[key].is_floating_point() and axis > 1

    if settings.export.dynamic_axes == "all" and any(is_side(key, 2) for key in tensors):
        yield resized(some, lambda key, axis: is_side(key, axis) or is_length(key, axis))
    if settings.export.dynamic_axes != "batch" and lengths:
        yield resized(some, is_length)


def read_parities(workspace: Workspace) -> dict[str, Parity]:
    """Read how far each file's outputs are from its model's: stage -> parity.

    Raises:
        WorkspaceError: It isn't there or is damaged.
    """
    found = workspace.read_json(FOLDER, PARITY, "export", dict[str, Parity])
    if lacking := FILES.keys() - found.keys():
        path = workspace.folder(FOLDER) / PARITY
        raise WorkspaceError(
            f"{path} is damaged: it lacks {', '.join(sorted(lacking))}; delete {path.parent} and run "
            f"{command_line('run export')} again"
        )
    return found
