"""Which version was in production when, and why: `promotions.jsonl`, one line for each decision, versioned in Git.

A decision is stored as a tag of its version before an alias is moved, and written to the file afterwards. If a kill
comes in between, the next decision completes the earlier one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pruning.io.files import replace_file
from tasks.config.schema import Settings
from tasks.registry import mlflow_models
from tasks.registry.mlflow_client import DECISIONS
from tasks.registry.mlflow_models import Version, read_tag
from tasks.reporting.verdict import Gate

FILE = DECISIONS
TAG = "secateur.decision"
REASON = "secateur.refused."
ROLLED_BACK = "secateur.rolled_back"

log = logging.getLogger("secateur")

Verdict = Literal["promoted", "refused", "declined", "rolled back"]
"""Declined: a person said no. Refused: a gate failed."""


class Decision(BaseModel):
    """One line of the file.

    Attributes:
        time: In UTC, to the second.
        decision: What was decided.
        model: The registered model's name.
        version: The version decided about; after a rollback the one that is in production again.
        instead_of: The version that was in production.
        gates: Each figure of both models, the limit, and whether it was passed.
        reasons: Why it was refused or declined.
        approved: Who or what said yes, where a person had to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: str
    decision: Verdict
    model: str
    version: str
    instead_of: str | None
    gates: list[dict[str, Any]] = []
    reasons: list[str] = []
    approved: str | None = None

    @classmethod
    def now(
        cls,
        verdict: Verdict,
        settings: Settings,
        version: str,
        instead_of: str | None,
        gates: Sequence[Gate] = (),
        reasons: Sequence[str] = (),
        approved: str | None = None,
    ) -> Decision:
        """Make a decision with the present time."""
        return cls(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            decision=verdict,
            model=settings.tracking.model_name,
            version=version,
            instead_of=instead_of,
            gates=[
                {
                    "gate": gate.name,
                    "candidate": gate.candidate,
                    "reference": gate.reference,
                    "limit": gate.limit,
                    "passed": gate.passed,
                }
                for gate in gates
            ],
            reasons=list(reasons),
            approved=approved,
        )

    @property
    def line(self) -> str:
        """The line, without its end."""
        return self.model_dump_json()


def announce(settings: Settings, decision: Decision) -> None:
    """Store a decision as a tag of its version before it is carried out, and remove the reasons of an earlier one."""
    tags = {TAG: decision.line}
    tags |= {f"{REASON}{number}": reason for number, reason in enumerate(decision.reasons, 1)}
    there = mlflow_models.find(settings, number=decision.version).tags
    stale = [key for key in there if key.startswith(REASON)]
    if decision.decision == "rolled back":
        stale.append(ROLLED_BACK)  # a version put back by hand may be promoted again
    mlflow_models.tag(settings, decision.version, tags, without=stale)


def write_down(decision: Decision) -> None:
    """Add a decision to the file, whole or not at all, unless it is there already."""
    _add(decision.line)


def about(version: Version | None) -> Decision | None:
    """Return the last decision about a version; None if none can be read."""
    if version is None or TAG not in version.tags:
        return None
    found = read_tag(version, TAG, Decision)
    if found is not None and found.version != version.number:
        log.warning("version %s: its tag %s is about version %s and is ignored", version.number, TAG, found.version)
        return None
    return found


def complete(settings: Settings) -> None:
    """Complete the last decision if a kill interrupted it: its line in the file, and the alias `previous`.

    The alias follows from the decision that put the present version into production: it belongs to the version that was
    there before, or to none after a rollback.
    """
    present = about(mlflow_models.at(settings, mlflow_models.PRODUCTION))
    if present is not None and present.decision in ("promoted", "rolled back"):
        write_down(present)
        before = present.instead_of if present.decision == "promoted" else None
        _put_previous(settings, before)
    latest = about(mlflow_models.at(settings, mlflow_models.CANDIDATE))
    if latest is not None and latest.decision in ("refused", "declined"):
        write_down(latest)


def _put_previous(settings: Settings, number: str | None) -> None:
    found = mlflow_models.at(settings, mlflow_models.PREVIOUS)
    if (found.number if found else None) == number:
        return
    if number in {version.number for version in mlflow_models.versions(settings)}:
        mlflow_models.assign(settings, mlflow_models.PREVIOUS, str(number))
    elif found is not None:
        mlflow_models.withdraw(settings, mlflow_models.PREVIOUS)


def _add(line: str) -> None:
    before = FILE.read_bytes() if FILE.exists() else b""
    if line.encode() not in before.splitlines():
        replace_file(FILE, before + line.encode() + b"\n")
