"""The command of each stage: `python -m flows.prepare`, `python -m flows.baseline`, and so on, each a flow.

What each does is in `tasks.stage_table`. A stage that is current as its last command left it is told without torch:
what runs one, `flows.stage_runner`, takes seconds to import and is imported where it is needed.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows import command
from flows.prefect_adapter import (
    BY_DVC,
    ProgressBar,
    call_as_flow,
    call_as_task,
    publish_table,
    uses_prefect,
)
from pruning.errors import WorkspaceError
from tasks import last_run
from tasks.file_cache import holding
from tasks.fingerprint import fingerprint, tell_dvc
from tasks.registry.dvc_repo import DvcRepo, inside_dvc
from tasks.stage_table import CODE, STAGES, body_of, find_stage
from tasks.workspace import Workspace, locked

if TYPE_CHECKING:  # these import torch
    from flows.stage_runner import Making, Run
    from tasks.fan_out import FanOut
    from tasks.loop.ledger import Row
    from tasks.loop.loop import Loop

log = logging.getLogger("secateur")

PRUNE = "prune"


def run_as_flow(run: Run, name: str) -> None:
    """Run a stage, unless it is current: a flow of its own, where Prefect's engine runs.

    Args:
        run: What was asked for.
        name: The stage.
    """
    from flows.fan_out import fan_out
    from flows.stage_runner import run_stage, unless_current

    def stage() -> None:
        with fan_out(run.settings) as parts:
            if name == PRUNE:
                unless_current(run, name, partial(_make, parts=parts))
            else:
                body = body_of(name)
                run_stage(run, name, partial(body, fan_out=parts) if name == "analyze" else body)

    shown = str(run.params), str(run.workspace.root), run.versions is not None
    call_as_flow(stage, name, find_stage(name).summary, *shown)


def _make(making: Making, parts: FanOut | None) -> None:
    from flows.stage_runner import recorded_end

    with recorded_end(making.run):
        _loop(making.run, parts)
    making.seal()


def _loop(run: Run, parts: FanOut | None) -> None:
    bar = ProgressBar("prune-progress", "share of the target that is reached")

    def watch(loop: Loop, row: Row | None) -> None:
        bar.update(loop.progress)
        if row is not None:
            _track(run, loop)

    loop = body_of(PRUNE)(run.settings, run.workspace, fan_out=parts, call=call_as_task, watch=watch)
    publish_table(
        "prune-attempts", [_cells(row, loop.measure.name) for row in loop.ledger.rows], "every attempt of the loop"
    )


def _track(run: Run, loop: Loop) -> None:
    """Bring MLflow up to date; if its server is unreachable, the next run does that, from the ledger."""
    if BY_DVC or not run.tracked:
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
    from flows.stage_runner import Run, planned

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
            program = _program()  # before anything else: our code may be edited while it runs
            if program is not None and _is_current_again(Path(params), Workspace(Path(workspace)), commit, name):
                log.info("%s: is current", name)
                return
            from flows.stage_runner import Run

            run = Run.begin(params, workspace, commit)
            run_as_flow(run, name)
            if program is not None:
                made_by = fingerprint(find_stage(name), run.settings, run.workspace)
                last_run.keep_stage(program, run.content, run.workspace, name, made_by)

    return stage


def _program() -> str | None:
    """Hash our code and the names of all packages; None where a folder of the search path can't be read."""
    try:
        return last_run.program_now()
    except OSError:
        return None


def _is_current_again(params: Path, workspace: Workspace, commit: bool, name: str) -> bool:
    """Say whether a stage is as its last command left it, which needs no torch; Prefect and DVC are told each time."""
    if uses_prefect() or inside_dvc() or not (workspace.root / last_run.FILE).exists():
        return False
    with locked(workspace):
        if not last_run.stage_again(params, workspace, find_stage(name), told=commit):
            return False
        return not (commit and DvcRepo().changed() & {CODE, name})


FLOWS = {stage.name: _command_of(stage.name) for stage in STAGES}
COMMANDS: dict[str, command.FlowFunction] = {CODE: code, **FLOWS}
"""What `python -m flows.<name>` runs: the stages, and what tells DVC about all of them."""


def run(name: str) -> None:
    """Run the command of a stage, or the one that tells DVC about all of them."""
    command.main(name, COMMANDS[name], TELL_DVC if name == CODE else find_stage(name).summary)
