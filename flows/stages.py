"""The command of each stage: `python -m flows.prepare`, `python -m flows.baseline`, and so on, each a flow.

What each does is in `tasks.stage_table`.
"""

from __future__ import annotations

import logging
from functools import partial

from flows import command
from flows.prefect_adapter import BY_DVC, ProgressBar, call_as_flow, call_as_task, in_processes, publish_table
from flows.stage_runner import Making, Run, planned, recorded_end, run_stage, unless_current
from pruning.errors import WorkspaceError
from tasks.file_cache import holding
from tasks.fingerprint import tell_dvc
from tasks.loop.ledger import Row
from tasks.loop.loop import Loop
from tasks.stage_table import CODE, STAGES, body_of, find_stage
from tasks.workspace import locked

log = logging.getLogger("secateur")

PRUNE = "prune"


def run_as_flow(run: Run, name: str) -> None:
    """Run a stage, unless it is current: a flow of its own, where Prefect's engine runs.

    Args:
        run: What was asked for.
        name: The stage.
    """

    def stage() -> None:
        if name == PRUNE:
            unless_current(run, name, _make)
        else:
            body = body_of(name)
            run_stage(run, name, partial(body, fan_out=in_processes) if name == "analyze" else body)

    shown = str(run.params), str(run.workspace.root), run.versions is not None
    call_as_flow(stage, name, find_stage(name).summary, *shown)


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

    loop = body_of(PRUNE)(run.settings, run.workspace, call=call_as_task, watch=watch)
    publish_table(
        "prune-attempts", [_cells(row, loop.measure.name) for row in loop.ledger.rows], "every attempt of the loop"
    )


def _track(run: Run, loop: Loop) -> None:
    """Bring MLflow up to date; if its server is unreachable, the next run does that, from the ledger."""
    if BY_DVC:
        return
    from tasks.registry import mlflow_runs

    try:
        mlflow_runs.project(run.settings, loop.ledger)
    except WorkspaceError as fault:
        log.warning("the loop goes on without MLflow for now: %s", fault)


def _cells(row: Row, score: str) -> dict[str, str | float | int | None]:
    found = row.measured
    return {
        "attempt": row.attempt + 1,
        "goal": round(row.goal, 4),
        "reached": round(row.reached, 4),
        score: round(found.score, 4) if found else None,
        "macs": found.macs if found else None,
        "recipe": row.recipe,
        "verdict": row.verdict,
    }


TELL_DVC = "Tell DVC what every stage executes."


def code(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Write down what each stage executes, and say which stages will run again because of it, and why.

    The first stage of `dvc repro`, which always runs.
    """
    run = Run.begin(params, workspace, commit)
    with locked(run.workspace):
        for stage in STAGES:
            try:
                planned(run, stage).say_why()
            except WorkspaceError:  # its inputs aren't there: it has to run anyway
                continue
        tell_dvc(run.settings, run.workspace)
        run.changed()


def _command_of(name: str) -> command.FlowFunction:
    def stage(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
        with holding():
            run_as_flow(Run.begin(params, workspace, commit), name)

    return stage


FLOWS = {stage.name: _command_of(stage.name) for stage in STAGES}
COMMANDS: dict[str, command.FlowFunction] = {CODE: code, **FLOWS}
"""What `python -m flows.<name>` runs: the stages, and what tells DVC about all of them."""


def run(name: str) -> None:
    """Run the command of a stage, or the one that tells DVC about all of them."""
    command.main(name, COMMANDS[name], TELL_DVC if name == CODE else find_stage(name).summary)
