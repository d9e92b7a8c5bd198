"""The loop's beginning and end; `flows.prune` runs the attempts between them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from pruning.allocation.schedule import Attempt, ScheduleSettings, Stop
from pruning.errors import DataError, WorkspaceError
from pruning.io.checkpoint import check_checkpoint
from tasks.command_line import command_line
from tasks.config.prune_schema import Kind
from tasks.config.schema import Settings
from tasks.data import read_description
from tasks.fingerprint import trajectory
from tasks.loop.ledger import FILE, Ledger, Row, forget_aside, open_ledger
from tasks.loop.measurements import baseline_ms, read_profile
from tasks.loop.targets import clock_warning, goals_of
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
        schedule: What to try next, as a function of the ledger.
        floor: The lowest accuracy on the validation set that is accepted.
        kind: What kind of pruning it is.
    """

    ledger: Ledger
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
    schedule = settings.prune.schedule_for(goals_of(settings.prune.target, baseline, baseline_ms(workspace)).total)
    shaped_by = trajectory(settings, workspace)
    ledger = open_ledger(workspace.folder(FOLDER), digest(shaped_by), baseline, schedule, shaped_by)
    _check(ledger)
    if (warning := clock_warning(settings.shaped_by_the_clock, read_profile(workspace))) is not None:
        log.warning("prune: %s", warning)
    if ledger.rows:
        log.info("prune: resuming after %d attempts, %d of them accepted", len(ledger.rows), len(ledger.accepted))
    return Loop(ledger, schedule, baseline.accuracy - settings.prune.max_accuracy_drop, settings.prune.kind)


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
