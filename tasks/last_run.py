"""How each stage stands; and what the last commands left, so that the next can tell quickly whether that holds.

    settings file, code, packages    the same bytes and versions     ─► the settings mean what they meant
    stage.json of every stage        modules, versions and files as they are now, worked out again, hashed
    MLflow's store                   the same bytes                  ─► all is recorded as it was

If all of this is unchanged, so is the answer, and nothing that takes seconds to import is needed: neither torch, which
reading the settings needs, nor MLflow. If anything differs or can't be told, the full check runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from pruning.errors import CheckpointError, SecateurError, WorkspaceError
from pruning.io.files import JsonError, checked_json
from tasks.code_closure import hash_of_program
from tasks.code_hash import Meaning, known_meanings, learn
from tasks.file_cache import derive, holding, read_bytes
from tasks.fingerprint import is_told, list_changes, origin, origin_now
from tasks.source_files import SOURCES_CHANGED, reads_others
from tasks.stage_table import STAGES, Stage
from tasks.workspace import Workspace, digest, is_current, origin_of, write_json

if TYPE_CHECKING:
    from tasks.config.schema import Settings  # imports torch


FILE = ".last_run.json"


class Answer(TypedDict):
    """What a run says when nothing is left to do.

    Attributes:
        text: The result.
        refusal: Why nothing is registered; None where something is.
        store: MLflow's, in which this is recorded.
        store_content: Hash of it; registering again changed nothing in it.
    """

    text: str
    refusal: str | None
    store: str
    store_content: str


class LastRun(TypedDict):
    """What is kept of it.

    Attributes:
        program: Hash of our code and of the names of all packages.
        params: Hash of the settings file.
        stages: Stage -> fingerprint of its folder, made by these settings: all of them, or those that were run alone.
        meanings: What was parsed to find the code of the stages.
        answer: What a run of all stages said; None where one of them was run alone since.
    """

    program: str
    params: str
    stages: dict[str, str]
    meanings: dict[str, Meaning]
    answer: Answer | None


def program_now() -> str:
    """Hash our code and the names of all packages, once in a run: as they were at its first look."""
    return derive("program", hash_of_program)


def keep(program: str, params: bytes, workspace: Workspace, stages: Mapping[str, str], answer: Answer) -> None:
    """Keep what a run found; where the disk is full, the next one asks everything again.

    Args:
        program: What `program_now` gave when the run began: our code may be edited while it runs.
        params: Content of the settings file.
        workspace: In which every stage is current.
        stages: Stage -> fingerprint of its folder.
        answer: What the run said.
    """
    _write(
        workspace,
        LastRun(program=program, params=_hash(params), stages=dict(stages), meanings=known_meanings(), answer=answer),
    )


def keep_stage(program: str, params: bytes, workspace: Workspace, stage: str, fingerprint: str) -> None:
    """Keep that a stage was run alone, or found current, beside what is known of the others.

    Args:
        program: What `program_now` gave when its command began.
        params: Content of the settings file.
        workspace: In which the stage is current.
        stage: Its name.
        fingerprint: Of its folder.
    """
    before = None
    with suppress(OSError, JsonError):
        before = _read(workspace)
    if before is not None and (before["program"], before["params"]) != (program, _hash(params)):
        before = None
    stages = before["stages"] if before else {}
    if stages.get(stage) == fingerprint:
        return
    meanings = {**(before["meanings"] if before else {}), **known_meanings()}
    stages = {**stages, stage: fingerprint}
    _write(workspace, LastRun(program=program, params=_hash(params), stages=stages, meanings=meanings, answer=None))


def _hash(params: bytes) -> str:
    return sha256(params).hexdigest()


def _read(workspace: Workspace) -> LastRun:
    return checked_json((workspace.root / FILE).read_bytes(), LastRun)


def _write(workspace: Workspace, found: LastRun) -> None:
    with suppress(OSError):
        write_json(workspace.root / FILE, to_jsonable_python(found))


def _known(params: Path, workspace: Workspace) -> LastRun | None:
    """Return what is kept; None where our code, a package or the settings are others.

    Raises:
        OSError: Nothing is kept, or the settings can't be read.
        JsonError: What is kept is damaged.
    """
    program = program_now()  # before anything else: our code may be edited while it runs
    found = _read(workspace)
    if found["program"] != program:
        return None
    learn(found["meanings"])
    return found if found["params"] == _hash(read_bytes(params)) else None


def _stands(stage: Stage, fingerprint: str | None, workspace: Workspace, told: bool) -> bool:
    """Say whether a stage's folder was made by what is there now, if by the settings that gave this fingerprint."""
    folder = workspace.folder(stage.folder)
    before = origin_of(folder)
    if before is None or digest(before) != fingerprint:
        return False
    now = origin_now(stage, before, workspace)
    if digest(now) != fingerprint or not is_current(folder, fingerprint) or reads_others(stage, workspace):
        return False
    return is_told(stage, now, workspace) if told else True


def same_again(params: Path, workspace: Workspace, *, told: bool = False) -> Answer | None:
    """Return what the last run said, if every stage is current by settings, code, versions and files as they are now.

    Args:
        params: The settings file.
        workspace: Where.
        told: Whether DVC has to have been told the same as well.

    Returns:
        None where anything has changed, or can't be told, or is at fault: then everything is to be asked.
    """
    with suppress(OSError, SecateurError, JsonError):
        found = _known(params, workspace)
        if found is None or found["answer"] is None:
            return None
        if all(_stands(stage, found["stages"].get(stage.name), workspace, told) for stage in STAGES):
            return found["answer"]
    return None


def stage_again(params: Path, workspace: Workspace, stage: Stage, *, told: bool = False) -> bool:
    """Say whether a stage is current by settings, code, versions and files as they are now; False where it can't tell.

    Args:
        params: The settings file.
        workspace: Where.
        stage: Which.
        told: Whether DVC has to have been told the same as well.
    """
    with suppress(OSError, SecateurError, JsonError):
        found = _known(params, workspace)
        return found is not None and _stands(stage, found["stages"].get(stage.name), workspace, told)
    return False


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
        if same_again(params, place) is not None:
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
