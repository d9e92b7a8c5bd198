"""One stage as every entrance runs it: lock, skip what is current, run, seal, commit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.engine import call_as_task
from tasks.fingerprints import fingerprint
from tasks.lock import locked
from tasks.settings import Settings, load
from tasks.stages import find_stage
from tasks.versioning import Versions
from tasks.workspace import Workspace, is_current, seal

log = logging.getLogger("secateur")

Body = Callable[[Settings, Workspace], None]


@dataclass(frozen=True)
class Run:
    """What a flow was asked for.

    Attributes:
        params: The settings file.
        settings: Read from it.
        workspace: Where everything lies.
        versions: Where finished stages are committed; None to leave DVC alone.
    """

    params: Path
    settings: Settings
    workspace: Workspace
    versions: Versions | None

    @classmethod
    def begin(cls, params: str, workspace: str, commit: bool) -> Run:
        """Read the settings and open the workspace.

        Raises:
            SettingsError: The settings are wrong.
            WorkspaceError: The workspace can't be written, or there is no DVC repository to commit to.
        """
        settings = load(Path(params))
        place = Workspace(Path(workspace))
        place.open()
        return cls(Path(params), settings, place, Versions() if commit else None)


def run_stage(name: str, body: Body, params: str, workspace: str, commit: bool) -> None:
    """Run one stage, unless its output is there and was made by the same settings, code and inputs.

    Args:
        name: The stage.
        body: Writes the stage's folder.
        params: The settings file.
        workspace: The workspace's folder.
        commit: Whether to commit the stage to DVC when it is done.
    """
    run = Run.begin(params, workspace, commit)
    stage = find_stage(name)
    folder = run.workspace.folder(stage.folder)
    with locked(run.workspace):
        made_by = fingerprint(stage, run.settings, run.workspace)
        if is_current(folder, made_by):
            log.info("%s: is current", name)
        else:
            call_as_task(_run_and_seal, name, body, run.settings, run.workspace, folder, made_by)
        if run.versions is not None and name in run.versions.changed():
            run.versions.commit(name)


def _run_and_seal(body: Body, settings: Settings, workspace: Workspace, folder: Path, made_by: str) -> None:
    body(settings, workspace)
    seal(folder, made_by)
