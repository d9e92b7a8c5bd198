"""Parts of a stage's work that any process can compute, in any order, more than once: each writes files, whole.

    stage ─► parts ─► a request for each, a file ─► FanOut.submit ─► a worker: the same code? ─► the part's files
      ▲                                                                                                │
      └── waits for the files; computes itself what a worker has failed to, or what nobody delivers ◄──┘

The files are all that comes back, so it doesn't matter who writes them, how often, and who finishes first. The engine
that starts the workers is in `flows.fan_out`; a worker's side is `tasks.part_worker`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from pruning.errors import SecateurError, WorkspaceError
from pruning.io.files import read_json, replace_file
from tasks.config.import_strings import resolve
from tasks.config.schema import Settings
from tasks.fingerprint import changes, executed
from tasks.stage_table import find_stage
from tasks.workspace import Json, Workspace

Poll = Callable[[], str | None]
"""Says how a part that was submitted stands: None while it waits or runs, "" when it has ended, else what failed."""

HEARTBEAT_S = 5.0
_POLL_S = 0.1
_SEEN_LATE_S = 60.0  # a network's file system may show a new file to other machines as late as that

log = logging.getLogger("secateur")


class FanOut(Protocol):
    """Where parts are computed: processes of this machine, a work pool, the cluster of a task runner."""

    @property
    def loads_once(self) -> bool:
        """Whether a worker keeps what it has loaded for its next part; else parts had better be few and large."""

    def submit(self, request: Path) -> Poll:
        """Have a worker compute a part.

        Args:
            request: The part's file, for `tasks.part_worker`.

        Raises:
            WorkspaceError: There is no cluster.
        """


@dataclass(frozen=True)
class Part:
    """A part of a stage's work.

    Attributes:
        name: What messages call it; its request has this name.
        work: Import string of what computes it: (settings, workspace, files, **arguments).
        arguments: JSON values.
        files: What it writes; the part is done when all of them are there.
    """

    name: str
    work: str
    arguments: Mapping[str, Json]
    files: tuple[Path, ...]

    @property
    def is_done(self) -> bool:
        """Whether its files are there."""
        return all(path.exists() for path in self.files)


class Request(BaseModel):
    """What a worker is told: a file beside the others of its part.

    Attributes:
        name: Of the part.
        work: Import string of what computes it.
        arguments: Of that.
        files: What it writes.
        project: The folder that all paths are relative to.
        workspace: Of the run.
        stage: Whose part it is.
        settings: Of the run, without what says how much of which machine is used.
        executed: Code and versions that the one who asks has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    work: str
    arguments: dict[str, Any]
    files: list[str]
    project: str
    workspace: str
    stage: str
    settings: dict[str, Any]
    executed: dict[str, Any]


def read_request(path: Path) -> Request:
    """Read a request.

    Raises:
        WorkspaceError: It isn't there, or is damaged.
    """
    try:
        return read_json(path, Request, error=WorkspaceError, mend="run the same command again")
    except FileNotFoundError:
        raise WorkspaceError(
            f"{path} isn't there: a worker has to see the project's folder, with the workspace, under the same path"
        ) from None


@dataclass
class _Asked:
    """A part that a worker was asked for."""

    part: Part
    request: Path
    poll: Poll
    heard: float = field(default_factory=monotonic)
    beat: str = ""
    ended: float | None = None

    def hears(self) -> bool:
        """Say whether its worker has given a sign of life since the last call."""
        try:
            now = self.request.with_suffix(".alive").read_text(encoding="utf-8")
        except OSError:
            return False
        if now == self.beat:
            return False
        self.beat, self.heard = now, monotonic()
        return True


def compute(
    parts: Sequence[Part],
    fan_out: FanOut,
    settings: Settings,
    workspace: Workspace,
    stage: str,
    place: Path,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> None:
    """Have parts computed, and compute here what nobody delivers; parts whose files are there are left as they are.

    What workers log is shown here in the order of the parts.

    Args:
        parts: Their names differ.
        fan_out: Where.
        settings: Of the run; `machine.patience_minutes` says when nobody is waited for any longer.
        workspace: Of the run.
        stage: Whose parts they are: its code is what workers have to have.
        place: A folder for the requests; whoever calls removes it in the end.
        progress: Told how many parts are done, and of how many.

    Raises:
        WorkspaceError: There is no cluster; or a worker has other code or other versions.
        SecateurError: As the part's work does.
    """
    missing = [part for part in parts if not part.is_done]
    progress(len(parts) - len(missing), len(parts))
    known = executed(find_stage(stage), settings) if missing else {}
    left: list[_Asked] = []
    for part in missing:
        request = place / f"{part.name}.json"
        for old in (".alive", ".refused", ".log"):
            request.with_suffix(old).unlink(missing_ok=True)
        _write(request, part, settings, workspace, stage, known)
        left.append(_Asked(part, request.absolute(), fan_out.submit(request.absolute())))
    asked, last = list(left), monotonic()
    while left:
        for one in list(left):
            if one.hears():
                last = monotonic()
            why = _why_here(one, last, 60 * settings.machine.patience_minutes)
            if why is None:
                continue
            if why:
                log.warning("%s: %s %s; it is computed here", stage, one.part.name, why)
                _do(one.request, one.part.work, one.part.arguments, one.part.files, settings, workspace)
            left.remove(one)
            last = monotonic()
            progress(len(parts) - len(left), len(parts))
        sleep(_POLL_S if left else 0)
    for one in asked:
        _replay(one.request.with_suffix(".log"))


def _write(request: Path, part: Part, settings: Settings, workspace: Workspace, stage: str, known: Json) -> None:
    written = Request(
        name=part.name,
        work=part.work,
        arguments=dict(part.arguments),
        files=[str(path) for path in part.files],
        project=str(Path.cwd()),
        workspace=str(workspace.root),
        stage=stage,
        settings=_portable(settings),
        executed=known,
    )
    replace_file(request, written.model_dump_json(indent=1).encode())


def _portable(settings: Settings) -> dict[str, Any]:
    """Return settings as JSON that gives the same settings again; a part isn't divided once more."""
    found: dict[str, Any] = settings.model_dump(mode="json")
    found["machine"] = {"num_workers": settings.machine.num_workers}
    return found


def _why_here(one: _Asked, last: float, patience_s: float) -> str | None:
    """Say why a part has to be computed here; "" if it is done, None if it is waited for.

    Raises:
        WorkspaceError: A worker has refused it.
    """
    refused = one.request.with_suffix(".refused")
    if refused.exists():
        raise WorkspaceError(refused.read_text(encoding="utf-8"))
    now, fault, done = monotonic(), one.poll(), one.part.is_done
    if done and (fault is not None or one.request.with_suffix(".log").exists()):
        return ""
    if fault:
        return f"wasn't delivered: {fault}"
    if fault == "":
        one.ended = one.ended or now
        if now - one.ended > _SEEN_LATE_S:
            return "was computed, but its files don't appear here: the workspace has to be on a disk that workers share"
    elif now - (one.heard if one.beat else last) > patience_s:
        what = "its worker has fallen silent" if one.beat else "no worker has begun with it"
        return "" if done else f"wasn't delivered: {what} for {patience_s / 60:g} minutes (machine.patience_minutes)"
    return None


def do(path: Path) -> None:
    """Compute the part of a request in this process, whose current folder is the project's.

    Raises:
        WorkspaceError: This process has other code or other versions than the one that asks.
        SecateurError: As the part's work does.
    """
    request = read_request(path)
    settings = Settings.model_validate(request.settings)
    now = executed(find_stage(request.stage), settings)
    if now != request.executed:
        same: dict[str, Json] = {"settings": {}, "reads": {}}
        raise WrongWorkerError(
            f"a worker of {request.stage} has other code or versions than the process that asks for its parts: "
            f"{changes({**same, **request.executed}, {**same, **now})}. Install the same versions there, start its "
            "workers anew, and run the same command again"
        )
    files = [Path(name) for name in request.files]
    with _alive(path):
        _do(path, request.work, request.arguments, files, settings, Workspace(Path(request.workspace)))


class WrongWorkerError(WorkspaceError):
    """A worker can't give the bytes that are asked for."""


def _do(
    request: Path,
    work: str,
    arguments: Mapping[str, Json],
    files: Sequence[Path],
    settings: Settings,
    workspace: Workspace,
) -> None:
    """Do a part's work, and keep what it logs for the one who asks."""
    kept = _Kept()
    loggers = [logging.getLogger(name) for name in ("secateur", "pruning")]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger, level in zip(loggers, (logging.INFO, logging.WARNING), strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = False, [kept]

    try:
        resolve(work)(settings, workspace, tuple(files), **arguments)
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers
    replace_file(request.with_suffix(".log"), json.dumps(kept.records).encode())


class _Kept(logging.Handler):
    """Keeps what is logged: logger, level, text."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.name, record.levelno, record.getMessage()))


def _replay(path: Path) -> None:
    try:
        records = read_json(path, list[tuple[str, int, str]], error=WorkspaceError, mend="delete it")
    except (FileNotFoundError, SecateurError):  # nothing depends on it
        return
    for name, level, text in records:
        logging.getLogger(name).log(level, "%s", text)


@contextmanager
def _alive(request: Path) -> Iterator[None]:
    """Write another text into the request's neighbour every few seconds: whoever waits needs no common clock."""
    over, path = threading.Event(), request.with_suffix(".alive")

    def beat() -> None:
        count = 0
        while True:
            try:
                path.write_text(str(count), encoding="utf-8")
            except OSError:  # the folder is gone: nobody waits any more
                return
            count += 1
            if over.wait(HEARTBEAT_S):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
