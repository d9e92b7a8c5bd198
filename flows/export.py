"""Write the ONNX files and prove that they compute the same: `python -m flows.export`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.export import export as body


@flow(name="export")
def export(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Write the ONNX files and prove that they compute the same."""
    run_stage("export", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("export", export, "Write the ONNX files and prove that they compute the same.")
