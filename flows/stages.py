"""The flow of each stage: `python -m flows.prepare`, `python -m flows.baseline`, and so on.

What each does is in `tasks.stage_table`.
"""

from __future__ import annotations

import logging
from functools import partial

from flows import command
from flows.prefect_adapter import BY_DVC, ProgressBar, call_as_task, flow, in_processes, publish_table
from flows.stage_runner import Making, Run, planned, recorded_end, run_stage, unless_current
from pruning.errors import WorkspaceError
from tasks.fingerprint import tell_dvc
from tasks.loop.ledger import Row
from tasks.loop.loop import Loop
from tasks.registry.dvc_repo import CODE
from tasks.stage_table import STAGES, body_of
from tasks.workspace import locked

log = logging.getLogger("secateur")

NAME = "prune"


@flow(name=NAME)
def prune(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Run the loop, from where the ledger says it stands."""
    unless_current(NAME, _make, params, workspace, commit)


def _make(making: Making) -> None:
    with recorded_end(making.run):
        _loop(making.run)
    making.seal()


def _loop(run: Run) -> None:
    bar = ProgressBar("prune-progress", "share of the target that is reached")

    def watch(loop: Loop, row: Row | None) -> None:
        bar.update(loop.progress)
        if row is not None:
            _track(run, loop)

    loop = body_of(NAME)(run.settings, run.workspace, call=call_as_task, watch=watch)
    publish_table("prune-attempts", [_cells(row) for row in loop.ledger.rows], "every attempt of the loop")


def _track(run: Run, loop: Loop) -> None:
    """Bring MLflow up to date; where it is away, whoever comes next does that, from the ledger."""
    if BY_DVC:
        return
    from tasks.registry import mlflow_runs

    try:
        mlflow_runs.project(run.settings, loop.ledger)
    except WorkspaceError as fault:
        log.warning("the loop goes on, not recorded for now: %s", fault)


def _cells(row: Row) -> dict[str, str | float | int | None]:
    found = row.measured
    return {
        "attempt": row.attempt + 1,
        "goal": round(row.goal, 4),
        "reached": round(row.reached, 4),
        "accuracy": round(found.accuracy, 4) if found else None,
        "macs": found.macs if found else None,
        "recipe": row.recipe,
        "verdict": row.verdict,
    }


SUMMARIES = {
    "code": "Tell DVC what every stage executes.",
    "prepare": "Bring the data set into the workspace.",
    "baseline": "Train the baseline, or take the one brought along.",
    "analyze": "Measure how much accuracy each channel group costs.",
    "profile": "Measure how long each layer takes by its widths.",
    "measurements": "Pick out the measurements that the loop goes by.",
    "prune": "Prune, fine-tune, judge, back off, until the target or the end of patience.",
    "transform": "Make the final dense model and prove that it equals the masked one.",
    "export": "Write the ONNX files and prove that they compute the same.",
    "benchmark": "Measure the latency of baseline and dense model.",
    "report": "Read the test set, for the first time, and write the report.",
}


def code(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Write what each stage executes, and say which stages that makes run again, and why.

    It is the first stage of `dvc repro`, which runs each time.
    """
    run = Run.begin(params, workspace, commit)
    with locked(run.workspace):
        for stage in STAGES:
            try:
                planned(run, stage).say_why()
            except WorkspaceError:  # what it reads isn't there: it has to run anyway
                continue
        tell_dvc(run.settings, run.workspace)
        run.changed()


def _flow_of(name: str) -> command.FlowFunction:
    def stage(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
        body = body_of(name)
        run_stage(name, partial(body, fan_out=in_processes) if name == "analyze" else body, params, workspace, commit)

    stage.__name__ = stage.__qualname__ = name
    stage.__doc__ = SUMMARIES[name]
    return flow(name=name)(stage)


prepare = _flow_of("prepare")
baseline = _flow_of("baseline")
analyze = _flow_of("analyze")
profile = _flow_of("profile")
measurements = _flow_of("measurements")
transform = _flow_of("transform")
export = _flow_of("export")
benchmark = _flow_of("benchmark")
report = _flow_of("report")

FLOWS: dict[str, command.FlowFunction] = {
    "prepare": prepare,
    "baseline": baseline,
    "analyze": analyze,
    "profile": profile,
    "measurements": measurements,
    "prune": prune,
    "transform": transform,
    "export": export,
    "benchmark": benchmark,
    "report": report,
}

COMMANDS: dict[str, command.FlowFunction] = {CODE: code, **FLOWS}
"""What `python -m flows.<name>` runs: the stages, and what tells DVC about all of them."""


def run(name: str) -> None:
    """Be the command of a stage, or of what tells DVC about all of them."""
    command.main(name, COMMANDS[name], SUMMARIES[name])
