"""Make the final dense model and prove that it equals the masked one: `python -m flows.transform`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.transform import transform as body


@flow(name="transform")
def transform(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Make the final dense model and prove that it equals the masked one."""
    run_stage("transform", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("transform", transform, "Make the final dense model and prove that it equals the masked one.")
