"""The ledger of the loop, `iterations/ledger.json`: every attempt, accepted or rejected, nothing volatile.

What to try next is derived from it, so a loop that was killed and resumed can't differ from an undisturbed one:

    attempt ─► checkpoint written to iterations/NN/ ─► row written to ledger.json    (only when accepted)
                                                       row written to ledger.json    (rejected: the row alone)

The row is the commit point. What a kill leaves behind without a row is removed when the ledger is opened again.

If settings, data or code change, the old trajectory is moved to `.iterations.aside/` until the new one has finished:
undo the change before that, and the old one continues.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from pruning.allocation.schedule import Attempt, Outcome, ScheduleSettings, Stop, next_step
from pruning.allocation.selection import Tried
from pruning.errors import WorkspaceError
from pruning.io.files import parse_json, read_bytes
from tasks.fingerprint import changes
from tasks.models import ModelMetrics
from tasks.terminal import command_line
from tasks.workspace import RECORD, Json, Workspace, digest, write_json

FOLDER = "iterations"
FILE = "ledger.json"
OUTCOME = "outcome.json"

_SHORT = 16

log = logging.getLogger("secateur")


class Row(BaseModel):
    """One attempt.

    Attributes:
        attempt: Its number, from 0.
        goal: The reduction to reach, against the baseline.
        reached: The reduction that its plan reached.
        accepted: Whether its score is at the floor or better.
        measured: The best recipe's model; None if no plan reaches the goal or no recipe gave a model.
        recipe: The best recipe.
        recipes: Each recipe's validation score.
        checkpoint: The folder of an accepted attempt, below `iterations/`.
        weights_sha256: Of the checkpoint's weights.
        refused: Why no plan reaches the goal.
        kept_epochs: Recipes whose last epochs were undone, and after which epoch the model is; 0: as before training.
        failed: Recipes without a model, and why: training diverged, or missed its sparsity.
        unrounded: Channels that each group would have kept in the last step, had its count not been rounded.
        relaxed: What was allowed for it, if the goal is out of reach within the first limits.
        streams: The residual streams that lost channels, by the names of their groups.
        tried: What came of each allocation, where several were tried for it.
        blocks: The residual branches that went whole, in the order in which they went.
        predicted_ms: The latency that the profile predicts, if the target names one.
        latency_ratio: If latency was measured: its share of the baseline's latency over the predicted share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: int = Field(ge=0)
    goal: float
    reached: float
    accepted: bool
    measured: ModelMetrics | None = None
    recipe: str | None = None
    recipes: dict[str, float] = {}
    checkpoint: str | None = Field(default=None, pattern=r"^\d{2,}$")
    weights_sha256: str | None = None
    refused: str | None = None
    kept_epochs: dict[str, int] = {}
    failed: dict[str, str] = {}
    unrounded: dict[str, int] | None = None
    relaxed: str | None = None
    streams: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    blocks: tuple[str, ...] = ()
    predicted_ms: float | None = None
    latency_ratio: float | None = None

    @property
    def verdict(self) -> str:
        """The outcome in a word or two."""
        if self.accepted:
            return "accepted"
        if self.measured is not None:
            return "rejected"
        return "training failed" if self.failed else "no plan"

    @property
    def outcome(self) -> Outcome:
        """The part that the schedule needs."""
        return Outcome(goal=self.goal, reached=self.reached, accepted=self.accepted)


class _Stored(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    origin: JsonValue = None
    baseline: ModelMetrics
    attempts: list[Row]
    digest: str


class Ledger:
    """The attempts of one trajectory, and the folder that they lie in."""

    def __init__(
        self, root: Path, fingerprint: str, baseline: ModelMetrics, rows: Sequence[Row] = (), origin: Json = None
    ) -> None:
        self.root = root
        self.origin = origin
        self.fingerprint = fingerprint
        self.baseline = baseline
        self.rows = list(rows)

    @property
    def accepted(self) -> list[Row]:
        """The accepted attempts in order."""
        return [row for row in self.rows if row.accepted]

    @property
    def latency_ratio(self) -> float:
        """How much longer latencies are than predicted, as measured last; 1 if nothing was measured."""
        return next((row.latency_ratio for row in reversed(self.accepted) if row.latency_ratio), 1.0)

    def next(self, schedule: ScheduleSettings) -> Attempt | Stop:
        """Derive what to do now."""
        return next_step(schedule, [row.outcome for row in self.rows])

    def record(self, row: Row) -> None:
        """Add an attempt: from here on it has happened."""
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        """Write the ledger, whole or not at all."""
        body = {
            "fingerprint": self.fingerprint,
            "origin": self.origin,
            "baseline": self.baseline.model_dump(),
            "attempts": [row.model_dump() for row in self.rows],
        }
        write_json(self.root / FILE, {**body, "digest": digest(body)})


def read_ledger(root: Path) -> Ledger:
    """Read a ledger as it stands.

    Raises:
        WorkspaceError: It isn't there, is damaged, or was edited.
    """
    path, mend = root / FILE, _remedy(root)
    try:
        content = read_bytes(path, error=WorkspaceError, mend=mend)
    except FileNotFoundError:
        raise WorkspaceError(f"{path} isn't there; run {command_line('run prune')} first") from None
    found = parse_json(content, _Stored, source=str(path), error=WorkspaceError, mend=mend)
    body = parse_json(content, dict[str, Any], source=str(path), error=WorkspaceError, mend=mend)
    if body.pop("digest") != digest(body):
        raise WorkspaceError(f"{path} was edited: its entries don't match its digest; {mend}")
    return Ledger(root, found.fingerprint, found.baseline, found.attempts, found.origin)


def open_ledger(
    root: Path, fingerprint: str, baseline: ModelMetrics, schedule: ScheduleSettings, origin: Json = None
) -> Ledger:
    """Resume a trajectory, or begin it.

    A ledger with another fingerprint belongs to other settings, data or code: it is set aside and the loop starts over.
    One that went further than the settings now ask is cut back to what they would have produced. Leftovers of a kill
    are removed.

    Args:
        root: The folder of the loop.
        fingerprint: Of everything that shapes the trajectory.
        baseline: The model that it starts from.
        schedule: Derives the next steps.
        origin: Everything that shapes the trajectory, to say later what has changed.

    Raises:
        WorkspaceError: The ledger or one of its checkpoints is damaged or was edited.
    """
    if (root / FILE).exists():
        found = read_ledger(root)
        if found.fingerprint != fingerprint:
            _step_aside(found, origin)
    kept = aside(root) / fingerprint[:_SHORT]
    if kept.is_dir() and not root.exists():
        kept.rename(root)
        log.info("prune: takes up what was set aside in %s", kept)
    root.mkdir(parents=True, exist_ok=True)
    (root / RECORD).unlink(missing_ok=True)
    rows = _agreed(read_ledger(root).rows, schedule, root) if (root / FILE).exists() else []
    ledger = Ledger(root, fingerprint, baseline, rows, origin)
    keep = {FILE} | {row.checkpoint for row in rows if row.checkpoint}
    for path in root.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    ledger.save()
    return ledger


def forget_aside(root: Path) -> None:
    """Remove the trajectories that were set aside."""
    shutil.rmtree(aside(root), ignore_errors=True)


def _step_aside(ledger: Ledger, now: Json) -> None:
    """Set a trajectory aside for another one, keep its accepted attempts, and log why."""
    why = changes(ledger.origin, now) if ledger.origin and now else "settings, data or code changed"
    if not ledger.accepted:
        log.info("prune: begins anew: %s", why)
        shutil.rmtree(ledger.root)
        return
    place = aside(ledger.root) / ledger.fingerprint[:_SHORT]
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    ledger.root.rename(place)
    log.info(
        "prune: begins anew: %s; the %d accepted attempts of before are in %s until this loop has finished",
        why,
        len(ledger.accepted),
        place,
    )


def aside(root: Path) -> Path:
    """Return the folder of trajectories that were set aside."""
    return root.with_name(f".{root.name}.aside")


def _agreed(rows: Sequence[Row], schedule: ScheduleSettings, root: Path) -> list[Row]:
    """Return the rows up to where the schedule stops; each must be the one that the schedule would ask for."""
    for index, row in enumerate(rows):
        step = next_step(schedule, [past.outcome for past in rows[:index]])
        if isinstance(step, Stop):
            return list(rows[:index])
        if step.goal != row.goal:
            raise WorkspaceError(
                f"{root / FILE}: attempt {row.attempt} has the goal {row.goal:.4f}, where the settings lead to "
                f"{step.goal:.4f}; {_remedy(root)}"
            )
        if row.checkpoint and not (root / row.checkpoint).is_dir():
            raise WorkspaceError(f"{root / row.checkpoint} isn't there, though the ledger names it; {_remedy(root)}")
    return list(rows)


def _remedy(root: Path) -> str:
    return f"bring it back with `dvc checkout {root}`, or delete {root} to start the loop over"


class LoopOutcome(TypedDict):
    """How the loop ended: what `outcome.json` holds.

    Attributes:
        kind: What was pruned.
        stopped_because: Why it ended.
        floor: The worst validation score that was accepted.
        checkpoint: Of the last accepted attempt; None where none was.
    """

    kind: str
    stopped_because: str
    floor: float
    checkpoint: str | None


def read_outcome(workspace: Workspace) -> LoopOutcome:
    """Read how the loop ended."""
    return workspace.read_json(FOLDER, OUTCOME, "prune", LoopOutcome)
