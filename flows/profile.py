"""Measure how long each layer takes by its widths: `python -m flows.profile`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.profile import profile as body


@flow(name="profile")
def profile(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Measure how long each layer takes by its widths."""
    run_stage("profile", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("profile", profile, "Measure how long each layer takes by its widths.")
