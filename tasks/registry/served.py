"""Which of a version's files a server of the registered model loads: the float one, or the quantised one."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from tasks import quantization
from tasks.config.schema import Settings
from tasks.reporting.quantized import quantized_part
from tasks.reporting.tables import Summary
from tasks.stages import export
from tasks.stages.benchmark import QUANTIZED
from tasks.workspace import Workspace

DENSE = "dense"


def file_of(workspace: Workspace, stage: str) -> Path:
    """Return the ONNX file of a model: "baseline", "dense", or "quantized"."""
    if stage == QUANTIZED:
        return workspace.folder(quantization.FOLDER) / quantization.ONNX
    return workspace.folder(export.FOLDER) / export.FILES[stage]


def choose_served(settings: Settings, workspace: Workspace) -> str:
    """Return which file a version of a finished pipeline serves: the quantised one if that is asked for and it may.

    Raises:
        WorkspaceError: A stage hasn't run.
    """
    asked = settings.promote.serve_quantized
    return QUANTIZED if asked and why_not_quantized(settings, workspace) is None else DENSE


def why_not_quantized(settings: Settings, workspace: Workspace) -> str | None:
    """Say why the quantised file isn't served although that is asked for; None where it is, or nobody asks.

    Raises:
        WorkspaceError: A stage hasn't run.
    """
    if not settings.promote.serve_quantized:
        return None
    part = quantized_part(workspace, workspace.read_json("report", "summary.json", "report", Summary))
    if part is None:
        return (
            "promote.serve_quantized is set and nothing is quantised; set quantize.profile, or serve_quantized to false"
        )
    return None if part.passed else part.sentence


def served_in(workspace: Workspace, onnx_hash: str | None) -> str:
    """Return which of a version's files is the one that it was registered by.

    Args:
        workspace: With the version's folders.
        onnx_hash: sha256 of the file, as the version's tag has it.
    """
    path = file_of(workspace, QUANTIZED)
    same = path.is_file() and sha256(path.read_bytes()).hexdigest() == onnx_hash
    return QUANTIZED if same else DENSE
