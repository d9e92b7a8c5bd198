"""The loop: prune a step, fine-tune, judge, back off, until the target is reached or patience ends.

`prune` is its one driver, the body of the stage: it opens the loop, makes one attempt after another, and closes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from pruning.allocation.schedule import Attempt, ScheduleSettings, Stop
from pruning.errors import DataError, WorkspaceError
from pruning.io.checkpoint import check_checkpoint
from tasks.command_line import command_line
from tasks.config.prune_schema import Kind
from tasks.config.schema import Settings
from tasks.data import read_description
from tasks.fingerprint import trajectory
from tasks.loop.attempt import attempt
from tasks.loop.ledger import FILE, Ledger, Row, forget_aside, open_ledger
from tasks.loop.measurements import baseline_ms, read_profile
from tasks.loop.targets import Goals, clock_warning, goals_of
from tasks.models import example_inputs, load_model, measured_in
from tasks.sanity_check import sanity_check
from tasks.training_state import forget
from tasks.workspace import Workspace, digest, write_json

FOLDER = "iterations"
OUTCOME = "outcome.json"

log = logging.getLogger("secateur")


class Outcome(TypedDict):
    """How the loop ended: what `outcome.json` holds.

    Attributes:
        kind: What was pruned.
        stopped_because: Why it ended.
        floor: The lowest validation accuracy that was accepted.
        checkpoint: Of the last accepted attempt; None where none was.
    """

    kind: str
    stopped_because: str
    floor: float
    checkpoint: str | None


@dataclass(frozen=True)
class Loop:
    """A trajectory under way.

    Attributes:
        ledger: What was tried.
        goals: What the target comes to, against the baseline.
        schedule: What to try next, as a function of the ledger.
        floor: The lowest accuracy on the validation set that is accepted.
        kind: What kind of pruning it is.
    """

    ledger: Ledger
    goals: Goals
    schedule: ScheduleSettings
    floor: float
    kind: Kind

    def next(self) -> Attempt | Stop:
        """Derive what to do now."""
        return self.ledger.next(self.schedule)

    @property
    def progress(self) -> float:
        """The share of the target that is reached."""
        accepted = self.ledger.accepted
        return min(1.0, accepted[-1].reached / self.schedule.target) if accepted else 0.0


Call = Callable[..., Any]
"""(function, name, arguments) -> what it returns: as a task of Prefect's, or simply called."""

Watch = Callable[[Loop, Row | None], object]
"""Is told of the loop when it is open, and after each attempt with its row in the ledger."""


def _call(function: Callable[..., Any], _name: str, *arguments: Any) -> Any:
    return function(*arguments)


def prune(
    settings: Settings, workspace: Workspace, *, call: Call = _call, watch: Watch = lambda _loop, _row: None
) -> Loop:
    """Run the loop from where its ledger stands to its end.

    Args:
        settings: Of the run.
        workspace: The stages before have finished in it.
        call: Opens the loop and makes each attempt.
        watch: Is told how it goes. What it raises leaves the loop as a kill would: the next call goes on from there.

    Raises:
        SecateurError: As `open_loop` and `attempt` do.
    """
    loop: Loop = call(open_loop, "open", settings, workspace)
    watch(loop, None)
    while isinstance(step := loop.next(), Attempt):
        name = f"attempt-{step.number + 1}-to-{step.goal:.3f}"
        row: Row = call(attempt, name, settings, workspace, loop.ledger, loop.goals, step, loop.floor)
        loop.ledger.record(row)
        log.info("%s", describe(row))
        watch(loop, row)
    close_loop(loop, step, workspace)
    return loop


def open_loop(settings: Settings, workspace: Workspace) -> Loop:
    """Resume the loop, or begin it.

    Raises:
        DataError: The data are others than the baseline's.
        SettingsError: The target is no reduction of this baseline, or what the settings name can't be called.
        ModelError: Model, loss or metric fail on the first batch.
        WorkspaceError: The ledger is damaged.
        CheckpointError: The baseline or an accepted attempt is damaged.
    """
    sanity_check(settings, workspace)
    data = read_description(workspace)
    folder = workspace.folder("baseline")
    _, _, meta = load_model(folder, settings, data, example_inputs(workspace, settings))
    trains_on_others = bool(settings.prune.recipes) and meta["data_fingerprint"] != data.fingerprint
    if trains_on_others and not settings.prune.allow_other_data:
        raise DataError(
            f"the baseline learned from the data {meta['data_fingerprint'][:12]}…, the workspace holds "
            f"{data.fingerprint[:12]}…; fine-tuning has to see the same data. Run "
            f"{command_line('run baseline')} again, or set prune.allow_other_data if it is meant"
        )
    baseline = measured_in(meta, folder)
    goals = goals_of(settings.prune.target, baseline, baseline_ms(workspace))
    schedule = settings.prune.schedule_for(goals.total)
    shaped_by = trajectory(settings, workspace)
    ledger = open_ledger(workspace.folder(FOLDER), digest(shaped_by), baseline, schedule, shaped_by)
    _check(ledger)
    if (warning := clock_warning(settings.shaped_by_the_clock, read_profile(workspace))) is not None:
        log.warning("prune: %s", warning)
    if ledger.rows:
        log.info("prune: resuming after %d attempts, %d of them accepted", len(ledger.rows), len(ledger.accepted))
    return Loop(ledger, goals, schedule, baseline.accuracy - settings.prune.max_accuracy_drop, settings.prune.kind)


def _check(ledger: Ledger) -> None:
    """See that every accepted attempt is as it was written: the folder's new record would vouch for it."""
    for row in ledger.accepted:
        place = ledger.root / str(row.checkpoint)
        if check_checkpoint(place) != row.weights_sha256:
            raise WorkspaceError(
                f"{place} holds other weights than {ledger.root / FILE} says; bring it back with "
                f"`dvc checkout {ledger.root}`, or delete {ledger.root} to begin the loop anew"
            )


def close_loop(loop: Loop, stop: Stop, workspace: Workspace) -> None:
    """Write how the loop ended."""
    accepted = loop.ledger.accepted
    outcome: Outcome = {
        "kind": loop.kind,
        "stopped_because": stop.reason,
        "floor": loop.floor,
        "checkpoint": accepted[-1].checkpoint if accepted else None,
    }
    write_json(loop.ledger.root / OUTCOME, outcome)
    forget(workspace)
    if accepted:
        forget_aside(loop.ledger.root)
    log.info("prune: %s; %d attempts, %d accepted", stop.reason, len(loop.ledger.rows), len(accepted))


def read_outcome(workspace: Workspace) -> Outcome:
    """Read how the loop ended."""
    return workspace.read_json(FOLDER, OUTCOME, "prune", Outcome)


def describe(row: Row) -> str:
    """Say in one line what became of an attempt."""
    what = f"attempt {row.attempt + 1}: goal {row.goal:.1%}"
    if row.measured is None:
        why = row.refused or "; ".join(f"{recipe}: {fault}" for recipe, fault in row.failed.items())
        return f"{what}, {row.verdict}: {why}"
    return f"{what}, reached {row.reached:.1%}, accuracy {row.measured.accuracy:.2%} by {row.recipe}: {row.verdict}"
