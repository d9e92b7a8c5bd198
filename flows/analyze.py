"""Measure how much accuracy each channel group costs: `python -m flows.analyze`."""

from __future__ import annotations

from functools import partial

from flows import command
from flows.engine import flow
from flows.fan_out import in_processes
from flows.stage import run_stage
from tasks.analyze import analyze as measure

body = partial(measure, fan_out=in_processes)


@flow(name="analyze")
def analyze(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Measure how much accuracy each channel group costs."""
    run_stage("analyze", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("analyze", analyze, "Measure how much accuracy each channel group costs.")
