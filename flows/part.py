"""The flow of one part of a stage, which `machine.work_pool` has deployed: see `flows.fan_out`."""

from __future__ import annotations

from pathlib import Path

from flows.prefect_adapter import flow
from pruning.errors import WorkspaceError
from tasks.part_worker import answer, begin


@flow(name="part", typed=True)
def part(request: str) -> None:
    """Compute a part of a stage that another process has asked for; its files are the result.

    Args:
        request: The path of the part's file in the workspace.

    Raises:
        WorkspaceError: The part failed, or this worker has other code or other versions.
    """
    begin()
    if fault := answer(Path(request)):
        raise WorkspaceError(fault)
