"""Measure how much accuracy each channel group costs at each rate: `python -m flows.analyze`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.analyze import analyze as body


@flow(name="analyze")
def analyze(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Measure how much accuracy each channel group costs at each rate."""
    run_stage("analyze", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("analyze", analyze, "Measure how much accuracy each channel group costs at each rate.")
