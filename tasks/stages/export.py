"""Write baseline and dense model as ONNX files, and prove that each computes what its torch model computes."""

from __future__ import annotations

import logging
from dataclasses import asdict

from pruning.dynamic.gates import GatedModel
from pruning.errors import ExportError, WorkspaceError
from pruning.io.onnx import Parity, check_parity, export_onnx
from pruning.plan.verification import TOLERANCE
from tasks.config.schema import Settings
from tasks.data import read_description, read_inputs, task_of
from tasks.determinism import begin
from tasks.models import example_inputs, load_model, with_one_output
from tasks.terminal import command_line
from tasks.workspace import Workspace, write_json, writing

FOLDER = "onnx"
PARITY = "parity.json"
FILES = {"dense": "model.onnx", "baseline": "baseline.onnx"}
_CLOSE_WITH_GATES = 0.99

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
    parities = {}
    with writing(workspace.folder(FOLDER)) as folder:
        for stage, file in FILES.items():
            model, _, _ = load_model(workspace.folder(stage), settings, data, example)
            gated = isinstance(model, GatedModel)
            model = with_one_output(model, example)
            path = export_onnx(model, example, folder / file, opset=settings.export.opset)
            parity = check_parity(path, model, inputs, by_class=task_of(settings).by_class)
            # A gate whose logit is within rounding of zero may fall to either side: a few samples may differ then.
            enough = parity.close >= _CLOSE_WITH_GATES and gated
            if not (parity.max_relative_difference < TOLERANCE or enough):
                raise ExportError(
                    f"{file} differs from the {stage} model by {parity.max_relative_difference:.2e} (relative), "
                    f"{parity.close:.2%} of the samples are within {TOLERANCE:.0e}; expected all of them"
                )
            parities[stage] = parity
        write_json(folder / PARITY, {stage: asdict(parity) for stage, parity in parities.items()})
    dense = parities["dense"]
    agree = "" if dense.top1_agreement is None else f", top-1 agrees on {dense.top1_agreement:.1%} of validation"
    log.info(
        "export: opset %d; ONNX and torch differ by %.1e (relative) at most%s",
        *(settings.export.opset, dense.max_relative_difference, agree),
    )


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
