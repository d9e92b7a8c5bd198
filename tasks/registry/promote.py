"""Put a candidate into production, or say why not; or roll back.

    gates ─► decision as a tag of the version ─► alias `previous` ─► alias `production` ─► line in promotions.jsonl

A kill at any arrow leaves some version in production. A promotion that didn't reach its alias is decided again; later
steps that are missing are completed by the next decision.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from pruning.errors import WorkspaceError
from tasks.config.schema import Settings
from tasks.registry import mlflow_models
from tasks.registry.compare import measure_side_by_side
from tasks.registry.decisions import ROLLED_BACK, Decision, about, announce, complete, write_down
from tasks.registry.mlflow_models import CANDIDATE, PREVIOUS, PRODUCTION, Version
from tasks.registry.trust import fetch_served, refuse_what_hangs
from tasks.reporting.verdict import Gate, judge
from tasks.terminal import command_line
from tasks.workspace import Workspace

WAITING = "secateur.waiting"


@dataclass(frozen=True)
class Case:
    """A candidate to decide about.

    Attributes:
        version: The candidate.
        instead_of: The version in production; None if there is none yet.
        gates: Both versions' figures and limits.
        reasons: Why the candidate can't go to production.
    """

    version: str
    instead_of: str | None
    gates: tuple[Gate, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Waiting:
    """The content of a version's tag while a person is asked about it.

    Attributes:
        run: The id of the flow's run that waits.
        case: What the person was shown.
    """

    run: str
    case: Case


def undecided(settings: Settings) -> str | None:
    """Return the candidate's version if nothing was decided about it yet and nobody is being asked."""
    candidate = mlflow_models.at(settings, CANDIDATE)
    if candidate is None or WAITING in candidate.tags:
        return None
    decision = about(candidate)
    if decision is None or (decision.decision == "promoted" and _was_cut_off(settings, candidate)):
        return candidate.number
    return None


def _was_cut_off(settings: Settings, candidate: Version) -> bool:
    """Say whether a promotion was decided but, because of a kill, never carried out."""
    production = mlflow_models.at(settings, PRODUCTION)
    in_production = production is not None and production.number == candidate.number
    return not in_production and ROLLED_BACK not in candidate.tags


def examine(settings: Settings, workspace: Workspace) -> Case | None:
    """Measure candidate and production side by side; None if the candidate is in production already.

    Raises:
        WorkspaceError: There is no candidate, or files of a version are missing.
    """
    complete(settings)
    candidate = mlflow_models.find(settings, alias=CANDIDATE)
    production = mlflow_models.at(settings, PRODUCTION)
    instead_of = production.number if production else None
    if candidate.number == instead_of:
        return None
    if ROLLED_BACK in candidate.tags:
        reason = (
            f"it was rolled back on {candidate.tags[ROLLED_BACK]}; put it back by hand with "
            f"{command_line(f'rollback --version {candidate.number}')} if that is meant"
        )
        return Case(candidate.number, instead_of, (), (reason,))
    new, old, pairs = measure_side_by_side(settings, workspace, candidate, production)
    gates = judge(new, old, settings.promote, pairs)
    return Case(candidate.number, instead_of, gates, tuple(gate.reason for gate in gates if not gate.passed))


def keep_waiting(settings: Settings, case: Case, run: str) -> None:
    """Store what a person is asked about, so that their yes applies to these figures and not to later ones."""
    mlflow_models.tag(settings, case.version, {WAITING: json.dumps(asdict(_Waiting(run, case)))})


def waited_for(settings: Settings, run: str | None) -> Case | None:
    """Return what a person was asked about in an earlier part of this run; None if nothing was asked.

    It may no longer be the candidate: the yes applies to the version that was shown, not to a later one.
    """
    for version in mlflow_models.versions(settings) if run is not None else ():
        found = mlflow_models.read_tag(version, WAITING, _Waiting) if WAITING in version.tags else None
        if found is not None and found.run == run:
            return found.case
    return None


def refuse(settings: Settings, case: Case) -> Decision:
    """Leave production as it is, and record why."""
    decision = Decision.now("refused", settings, case.version, case.instead_of, case.gates, case.reasons)
    return _record(settings, decision)


def decline(settings: Settings, case: Case, reason: str) -> Decision:
    """Leave production as it is because a person said no."""
    decision = Decision.now("declined", settings, case.version, case.instead_of, case.gates, [reason])
    return _record(settings, decision)


def promote(settings: Settings, case: Case, approved: str | None = None) -> Decision:
    """Put a candidate that passed every gate into production.

    Raises:
        WorkspaceError: Production is no longer the version that the candidate was compared with.
    """
    _still(settings, case.instead_of)
    decision = Decision.now("promoted", settings, case.version, case.instead_of, case.gates, approved=approved)
    announce(settings, decision)
    if case.instead_of is not None:
        mlflow_models.assign(settings, PREVIOUS, case.instead_of)
    mlflow_models.assign(settings, PRODUCTION, case.version)
    write_down(decision)
    return decision


def roll_back(settings: Settings, number: str | None = None) -> Decision:
    """Put `previous`, or a named version, into production.

    The version that was there is marked, so that no schedule promotes it again. There is no `previous` afterwards.

    Raises:
        WorkspaceError: There is nothing to go back to, nothing is in production, or serving that version would run code
            other than an ONNX file.
    """
    complete(settings)
    goal = None if number is None else mlflow_models.find(settings, number=number)
    production = mlflow_models.find(settings, alias=PRODUCTION)
    if goal is None:
        previous = mlflow_models.at(settings, PREVIOUS)
        if previous is None or previous.number == production.number:
            raise WorkspaceError(
                f"version {production.number} is in production and no version is `previous`; name one with --version N "
                "(promotions.jsonl says what was in production when)"
            )
        goal = previous
    if goal.number == production.number:
        raise WorkspaceError(f"version {goal.number} is in production already")
    _see_that_it_can_be_served(settings, goal)
    decision = Decision.now("rolled back", settings, goal.number, production.number)
    announce(settings, decision)
    mlflow_models.tag(settings, production.number, {ROLLED_BACK: decision.time})
    mlflow_models.assign(settings, PRODUCTION, goal.number)
    if mlflow_models.at(settings, PREVIOUS) is not None:
        mlflow_models.withdraw(settings, PREVIOUS)
    write_down(decision)
    return decision


def _see_that_it_can_be_served(settings: Settings, version: Version) -> None:
    """Refuse a version that isn't an ONNX file with its record, as a registration makes it."""
    mlflow_models.read_record(settings, version)
    with tempfile.TemporaryDirectory() as folder:
        refuse_what_hangs(version, fetch_served(settings, version, Path(folder)))


def _still(settings: Settings, instead_of: str | None) -> None:
    now = mlflow_models.at(settings, PRODUCTION)
    if (now.number if now else None) != instead_of:
        raise WorkspaceError(
            f"production changed from version {instead_of or 'none'} to {now.number if now else 'none'} while the "
            "candidate was measured: another promotion won; run again to compare with the new one"
        )


def _record(settings: Settings, decision: Decision) -> Decision:
    announce(settings, decision)
    write_down(decision)
    return decision
