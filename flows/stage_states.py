"""How each stage stands: whether a run would skip it, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pruning.errors import CheckpointError, WorkspaceError
from tasks import last_run
from tasks.file_cache import holding
from tasks.fingerprint import list_changes, origin
from tasks.source_files import SOURCES_CHANGED, reads_others
from tasks.stage_table import STAGES, Stage
from tasks.workspace import Workspace, digest, is_current, origin_of

if TYPE_CHECKING:
    from tasks.config.schema import Settings  # imports torch


@dataclass(frozen=True)
class State:
    """How a stage stands.

    Attributes:
        stage: Its name.
        state: current: a run would skip it. changed: it was made by something else. not run: it hasn't finished.
            damaged: its files aren't those that it wrote.
        reasons: Why it isn't current; none where it is.
    """

    stage: str
    state: Literal["current", "changed", "not run", "damaged"]
    reasons: tuple[str, ...] = ()

    @property
    def is_current(self) -> bool:
        """Whether a run would skip it."""
        return self.state == "current"


def states_of(params: Path, workspace: Path) -> list[State]:
    """Say of every stage, in order, whether it is current, and if not, why.

    Raises:
        SettingsError: The settings are wrong.
    """
    place, found = Workspace(workspace), dict[str, State]()
    with holding():
        if last_run.same_again(params, place) is not None:
            return [State(stage.name, "current") for stage in STAGES]
        from tasks.config.schema import load

        settings = load(params)
        for stage in STAGES:
            found[stage.name] = _state_of(stage, settings, place, found)
    return list(found.values())


def _state_of(stage: Stage, settings: Settings, workspace: Workspace, earlier: dict[str, State]) -> State:
    again = [f"it reads {need}, which isn't current" for need in stage.needs if not earlier[need].is_current]
    folder = workspace.folder(stage.folder)
    try:
        before = origin_of(folder)
        now = (
            None
            if any(earlier[need].state == "not run" for need in stage.needs)
            else origin(stage, settings, workspace)
        )
        if before is None:
            begun = folder.is_dir() and any(folder.iterdir())
            return State(stage.name, "not run", ("it hasn't finished" if begun else "it hasn't run",))
        if now is None:
            return State(stage.name, "changed", tuple(again))
        if is_current(folder, digest(now)):
            if reads_others(stage, workspace):
                return State(stage.name, "changed", (SOURCES_CHANGED,))
            return State(stage.name, "changed", tuple(again)) if again else State(stage.name, "current")
        return State(stage.name, "changed", (*list_changes(before, now), *again))
    except CheckpointError as fault:
        return State(stage.name, "damaged", (str(fault),))
    except WorkspaceError as fault:
        return State(stage.name, "not run", (str(fault),))
