"""Prune, fine-tune, judge, back off, until the target or the end of patience: `python -m flows.prune`."""

from __future__ import annotations

import logging

from flows import command
from flows.engine import BY_DVC, ProgressBar, call_as_task, flow, publish_table
from flows.stage import Making, Run, recorded_end, unless_current
from pruning.choosing.schedule import Attempt
from pruning.errors import WorkspaceError
from tasks.loop.attempt import attempt
from tasks.loop.ledger import Row
from tasks.prune import Loop, close_loop, describe, open_loop

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
    loop = call_as_task(open_loop, "open", run.settings, run.workspace)
    bar = ProgressBar("prune-progress", "share of the target that is reached")
    bar.update(loop.progress)
    while isinstance(step := loop.next(), Attempt):
        name = f"attempt-{step.number + 1}-to-{step.goal:.3f}"
        row: Row = call_as_task(attempt, name, run.settings, run.workspace, loop.ledger, step, loop.floor)
        loop.ledger.record(row)
        log.info("%s", describe(row))
        bar.update(loop.progress)
        _track(run, loop)
    close_loop(loop, step, run.workspace)
    publish_table("prune-attempts", [_cells(row) for row in loop.ledger.rows], "every attempt of the loop")


def _track(run: Run, loop: Loop) -> None:
    """Bring MLflow up to date; where it is away, whoever comes next does that, from the ledger."""
    if BY_DVC:
        return
    from tasks.production import tracking

    try:
        tracking.project(run.settings, loop.ledger)
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


if __name__ == "__main__":
    command.main(NAME, prune, "Prune, fine-tune, judge, back off, until the target or the end of patience.")
