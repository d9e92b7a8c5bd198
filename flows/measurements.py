"""Pick out the measurements that the loop goes by: `python -m flows.measurements`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.measurements import measurements as body


@flow(name="measurements")
def measurements(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Pick out the measurements that the loop goes by."""
    run_stage("measurements", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("measurements", measurements, "Pick out the measurements that the loop goes by.")
