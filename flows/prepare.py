"""Bring the data set into the workspace: `python -m flows.prepare`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.prepare import prepare as body


@flow(name="prepare")
def prepare(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Bring the data set into the workspace."""
    run_stage("prepare", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("prepare", prepare, "Bring the data set into the workspace.")
