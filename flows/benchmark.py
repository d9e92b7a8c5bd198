"""Measure the latency of baseline and dense model: `python -m flows.benchmark`."""

from __future__ import annotations

from flows import command
from flows.engine import flow
from flows.stage import run_stage
from tasks.benchmark import benchmark as body


@flow(name="benchmark")
def benchmark(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Measure the latency of baseline and dense model."""
    run_stage("benchmark", body, params, workspace, commit)


if __name__ == "__main__":
    command.main("benchmark", benchmark, "Measure the latency of baseline and dense model.")
