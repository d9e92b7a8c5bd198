"""Read the test set, for the first time, and write the report: `python -m flows.report`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.report import report as body


@flow(name="report")
def report(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Read the test set, for the first time, and write the report."""
    run_stage("report", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("report", report, "Read the test set, for the first time, and write the report.")
