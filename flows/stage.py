"""One stage as every entrance runs it: lock, skip what is current, run, seal, commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.engine import PLAIN, call_as_task
from pruning.errors import WorkspaceError
from tasks.fingerprints import fingerprint
from tasks.lock import locked
from tasks.loop.ledger import FILE as LEDGER
from tasks.loop.ledger import read_ledger
from tasks.params.settings import Settings, load
from tasks.production import tracking
from tasks.production.versioning import Versions
from tasks.prune import FOLDER as LOOP
from tasks.stages import find_stage
from tasks.workspace import Workspace, is_current, seal

log = logging.getLogger("secateur")

Body = Callable[[Settings, Workspace], None]
Work = Callable[["Run", Path, str], None]
"""(what was asked for, the stage's folder, fingerprint to seal it with)"""


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


@contextmanager
def recorded_end(run: Run) -> Iterator[None]:
    """Let MLflow's run say so where a signal or a fault ends the block: it would seem to be under way for ever."""
    try:
        yield
    except BaseException as end:
        if not PLAIN and (run.workspace.folder(LOOP) / LEDGER).exists():
            _record_end(run, tracking.FAILED if isinstance(end, Exception) else tracking.KILLED)
        raise


def _record_end(run: Run, status: str) -> None:
    try:
        ledger = read_ledger(run.workspace.folder(LOOP))
        tracking.end_early(run.settings, ledger.fingerprint, status)
    except WorkspaceError as fault:
        log.warning("MLflow's run doesn't say that it ended: %s", fault)


def run_stage(name: str, body: Body, params: str, workspace: str, commit: bool) -> None:
    """Run one stage, unless its output is there and was made by the same settings, code and inputs.

    Args:
        name: The stage.
        body: Writes the stage's folder.
        params: The settings file.
        workspace: The workspace's folder.
        commit: Whether to commit the stage to DVC when it is done.
    """

    def work(run: Run, folder: Path, made_by: str) -> None:
        call_as_task(_run_and_seal, name, body, run.settings, run.workspace, folder, made_by)

    unless_current(name, work, params, workspace, commit)


def unless_current(name: str, work: Work, params: str, workspace: str, commit: bool) -> None:
    """Have a stage's folder made and sealed, unless it is there and was made by the same settings, code and inputs.

    Args:
        name: The stage.
        work: Makes and seals it.
        params: The settings file.
        workspace: The workspace's folder.
        commit: Whether to commit the stage to DVC when it is done.
    """
    run = Run.begin(params, workspace, commit)
    stage = find_stage(name)
    folder = run.workspace.folder(stage.folder)
    with locked(run.workspace):
        made_by = fingerprint(stage, run.settings, run.workspace)
        done = is_current(folder, made_by)
        if done:
            log.info("%s: is current", name)
        else:
            work(run, folder, made_by)
        if run.versions is not None and (not done or name in run.versions.changed()):
            run.versions.commit(name)


def _run_and_seal(body: Body, settings: Settings, workspace: Workspace, folder: Path, made_by: str) -> None:
    body(settings, workspace)
    seal(folder, made_by)
