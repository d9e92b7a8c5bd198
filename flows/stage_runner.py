"""One stage as every entrance runs it: lock, skip what is current, run, seal, commit."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from flows import signals
from flows.prefect_adapter import BY_DVC, call_as_task
from pruning.errors import SettingsError, WorkspaceError
from tasks.code_closure import unlisted
from tasks.config.schema import Settings, load
from tasks.file_cache import afresh, holding, read_bytes
from tasks.fingerprint import changes, executed, origin, settings_of, tell_dvc, to_tell, told
from tasks.loop.ledger import FILE as LEDGER
from tasks.loop.ledger import FOLDER as LOOP
from tasks.loop.ledger import read_ledger
from tasks.rank_group import followers
from tasks.registry import mlflow_runs
from tasks.registry.dvc_repo import DvcRepo, inside_dvc
from tasks.source_files import SOURCES_CHANGED, reads_others
from tasks.stage_table import CODE, STAGES, Stage, find_stage
from tasks.workspace import Json, Workspace, digest, is_current, locked, origin_of, seal

log = logging.getLogger("secateur")

_named: set[str] = set()  # files that a warning of this process has named
_listed: set[str] = set()  # modules that stages of this process are known to depend on

Body = Callable[[Settings, Workspace], None]
Work = Callable[["Making"], None]
"""Makes and seals a stage's folder."""


@dataclass(frozen=True)
class Run:
    """What a command was asked for, read once: every stage is given this.

    Attributes:
        params: The settings file.
        content: Of that file, as it was read.
        settings: The same, checked.
        workspace: Where everything is written.
        versions: Where finished stages are committed; None to leave DVC alone.
        tracked: Whether MLflow is told how the loop goes.
    """

    params: Path
    content: bytes
    settings: Settings
    workspace: Workspace
    versions: DvcRepo | None
    tracked: bool = True

    @classmethod
    def begin(cls, params: str, workspace: str, commit: bool) -> Run:
        """Read the settings and open the workspace.

        Raises:
            SettingsError: The settings are wrong.
            WorkspaceError: The workspace can't be written, or there is no DVC repository to commit to.
        """
        with holding():
            settings, content = load(Path(params)), read_bytes(Path(params))
        place = Workspace(Path(workspace))
        place.open()
        return cls(Path(params), content, settings, place, DvcRepo() if commit else None)

    def changed(self) -> frozenset[str]:
        """Return the stages that DVC calls changed, after telling it what each executes; none without DVC."""
        if self.versions is None:
            return frozenset()
        tell_dvc(self.settings, self.workspace)
        changed = self.versions.changed()
        if CODE in changed:
            self.versions.commit(CODE)
        return changed


@dataclass(frozen=True)
class Making:
    """What a stage is about to make.

    Attributes:
        run: What was asked for.
        stage: The stage.
        origin: Everything that shapes its output.
    """

    run: Run
    stage: Stage
    origin: Json

    @property
    def folder(self) -> Path:
        """The folder that it writes."""
        return self.run.workspace.folder(self.stage.folder)

    @property
    def is_done(self) -> bool:
        """Whether the folder is there and was made by the same settings, code and inputs."""
        return is_current(self.folder, digest(self.origin)) and not reads_others(self.stage, self.run.workspace)

    def say_why(self) -> None:
        """Log what has changed since the stage last ran, if it did."""
        before = origin_of(self.folder)
        if before not in (None, self.origin):
            log.info("%s: runs again: %s", self.stage.name, changes(before, self.origin))
        elif reads_others(self.stage, self.run.workspace):
            log.info("%s: runs again: %s", self.stage.name, SOURCES_CHANGED)

    def seal(self) -> None:
        """Record the folder's files and what they were made by.

        Raises:
            WorkspaceError: A module was edited while the stage ran, so it can't be told which version was executed.
        """
        with afresh():
            now = {**self.origin, **executed(self.stage, self.run.settings)}
        if now != self.origin:
            raise WorkspaceError(
                f"while {self.stage.name} ran, {changes(self.origin, now)}; it can't be told which version was "
                "executed, so the result is discarded. Run the same command again"
            )
        seal(self.folder, digest(self.origin), self.origin)
        self._warn_of_unlisted()

    def _warn_of_unlisted(self) -> None:
        """Name modules of the user's that were executed and that no stage is known to depend on, once."""
        _listed.update(self.origin["modules"])
        new = _unlisted()
        if new:  # by this stage and those before it in this process: most likely another one's
            for stage in STAGES:
                _listed.update(executed(stage, self.run.settings)["modules"])
            new = _unlisted()
        _named.update(new)
        if new:
            log.warning(
                "%s: executed %s, which no import statement leads to: when it is edited, nothing will be seen as "
                'changed. Import it in the file that a setting names, or name it in a string there ("package.module")',
                self.stage.name,
                ", ".join(new),
            )

    def check_settings(self) -> None:
        """Make sure that DVC records the settings that were used, since it reads the file as it is now.

        Raises:
            WorkspaceError: The settings were edited while the stage ran.
        """
        try:
            with afresh():
                now = settings_of(self.stage, load(self.run.params))
        except SettingsError:
            now = None
        if now != self.origin["settings"]:
            raise WorkspaceError(
                f"{self.run.params} was edited while {self.stage.name} ran; the result belongs to the settings as they "
                "were and isn't recorded in dvc.lock. Run again for the new ones"
            )


def _unlisted() -> list[str]:
    return [file for file in unlisted(dict(sys.modules), _listed) if file not in _named]


@contextmanager
def recorded_end(run: Run) -> Iterator[None]:
    """Mark MLflow's run as ended if a signal or a fault ends the block; otherwise it would look unfinished for ever."""
    try:
        yield
    except BaseException as end:
        if run.tracked and not BY_DVC and (run.workspace.folder(LOOP) / LEDGER).exists():
            failed = isinstance(end, Exception) and not signals.asked()
            _record_end(run, mlflow_runs.FAILED if failed else mlflow_runs.KILLED, end)
        raise


def _record_end(run: Run, status: str, end: BaseException) -> None:
    try:
        ledger = read_ledger(run.workspace.folder(LOOP))
        mlflow_runs.end_early(run.settings, ledger.fingerprint, status)
    except WorkspaceError as fault:
        if str(fault) != str(end):  # what ended the run is said anyway
            log.warning("MLflow's run couldn't be marked as ended: %s", fault)


def run_stage(run: Run, name: str, body: Body) -> None:
    """Run one stage as a task, unless it is current.

    Args:
        run: What was asked for.
        name: The stage.
        body: Writes the stage's folder.
    """

    def work(making: Making) -> None:
        call_as_task(_run_and_seal, name, body, making)

    unless_current(run, name, work)


def unless_current(run: Run, name: str, work: Work) -> None:
    """Make and seal a stage's folder, unless it is there and was made by the same settings, code and inputs.

    Args:
        run: What was asked for; the stage is committed to DVC when it is done, if the run's stages are.
        name: The stage.
        work: Makes and seals it.
    """
    with holding(), locked(run.workspace):
        making = planned(run, find_stage(name))
        if inside_dvc():
            _check_that_dvc_knows(making)
        done = making.is_done
        if done:
            log.info("%s: is current", name)
        else:
            making.say_why()
            with followers(run.settings) if making.stage.has_passes else nullcontext():
                work(making)
        if inside_dvc():
            making.check_settings()
        elif run.versions is not None:
            _commit(making, run.versions, done)


def planned(run: Run, stage: Stage) -> Making:
    """Return what a stage is to make.

    Raises:
        WorkspaceError: A stage that it reads from hasn't finished.
    """
    return Making(run, stage, origin(stage, run.settings, run.workspace))


def _check_that_dvc_knows(making: Making) -> None:
    """Make sure that the code is still what DVC was told when its run began."""
    known, found = told(making.stage, making.run.workspace), to_tell(making.stage, making.run.settings)
    if known is not None and known != found:
        raise WorkspaceError(
            f"since DVC's run began, {changes({**making.origin, **known}, making.origin)}; run `dvc repro` again"
        )


def _commit(making: Making, versions: DvcRepo, done: bool) -> None:
    if done:
        if making.stage.name not in making.run.changed():
            return
    elif tell_dvc(making.run.settings, making.run.workspace):
        versions.commit(CODE)
    try:
        making.check_settings()
    except WorkspaceError as fault:
        log.warning("%s", fault)
    else:
        versions.commit(making.stage.name)


def _run_and_seal(body: Body, making: Making) -> None:
    body(making.run.settings, making.run.workspace)
    making.seal()
