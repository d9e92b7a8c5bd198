"""Train the baseline, or take the one brought along: `python -m flows.baseline`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.baseline import baseline as body


@flow(name="baseline")
def baseline(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Train the baseline, or take the one brought along."""
    run_stage("baseline", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("baseline", baseline, "Train the baseline, or take the one brought along.")
