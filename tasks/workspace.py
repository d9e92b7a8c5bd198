"""The workspace: where files lie, how folders are written whole or not at all, who may write, what is current."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NotRequired, TypeVar

from filelock import FileLock, Timeout
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from pruning.errors import CheckpointError, WorkspaceError
from pruning.io.files import put_all_back, put_back, read_json, replace_file, writing
from tasks.terminal import command_line

__all__ = [
    "DEFAULT_PARAMS",
    "DEFAULT_ROOT",
    "RECORD",
    "Json",
    "Workspace",
    "contents",
    "digest",
    "digest_of_files",
    "is_current",
    "origin_of",
    "seal",
    "write_json",
    "writing",
]

DEFAULT_PARAMS = Path("params.yaml")
DEFAULT_ROOT = Path("artifacts")
RECORD = "stage.json"
_PREPARED = {"meta.json", "example.safetensors"}
"""The files of a data set as `prepare` writes it, before its record is added."""

Json = Any
"""What `json` reads and writes."""

T = TypeVar("T")


class _Seal(TypedDict):
    """What `stage.json` holds: what a folder was made by, and the hash of every file in it."""

    fingerprint: str
    files: dict[str, str]
    origin: NotRequired[Any]


@dataclass(frozen=True)
class Workspace:
    """The folder that holds everything a pipeline writes.

    The data of the default workspace lie beside it, in `data/`, unless a folder of this name holds files of the user's
    own, which stay untouched. Those of any other lie inside it, so that two workspaces never share a data set by
    accident.
    """

    root: Path

    def folder(self, name: str) -> Path:
        """Return where a stage's folder lies."""
        if name == "data" and self.root == DEFAULT_ROOT and not _is_foreign(Path("data")):
            return Path("data")
        return self.root / name

    def open(self) -> None:
        """Make the workspace and prove that it can be written, before any work is done.

        Raises:
            WorkspaceError: It can't be written, or a link in it leads elsewhere.
        """
        self.refuse_links()
        probe = self.root / ".probe"  # one name for all, so that one that a kill left behind goes too
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"\0" * 4096)
            probe.unlink(missing_ok=True)
        except OSError as error:
            if probe.is_file():
                probe.unlink(missing_ok=True)
            raise WorkspaceError(
                f"the workspace {self.root} can't be written: {error.strerror}; nothing was changed. "
                "Name another folder, or fix the folder's permissions or free some disk space"
            ) from error

    def put_back(self) -> None:
        """Bring back every folder that was lost between the two renames of its replacement; the lock has to be held."""
        put_all_back(self.root)
        put_back(self.folder("data"))

    def refuse_links(self) -> None:
        """Make sure that files land inside the workspace, and a relative workspace inside the current folder.

        Raises:
            WorkspaceError: A symbolic link leads elsewhere.
        """
        here, place = Path.cwd().resolve(), self.root.resolve()
        out = not self.root.is_absolute() and ".." not in self.root.parts and not place.is_relative_to(here)
        found = [self.root] if out else []
        inside = sorted(self.root.iterdir()) if self.root.is_dir() else []
        found += [path for path in (self.folder("data"), *inside) if path.is_symlink()]
        if found:
            raise WorkspaceError(
                f"{found[0]} is, or lies behind, a symbolic link to {found[0].resolve()}; nothing is written through "
                "links: remove the link, or name the folder itself"
            )

    def read_json(self, folder: str, name: str, maker: str, form: type[T]) -> T:
        """Read a JSON file of a stage's folder.

        Args:
            folder: The folder.
            name: The file.
            maker: The stage that writes it, for the message when it isn't there.
            form: What it holds, as `pruning.io.files` takes it.

        Raises:
            WorkspaceError: It isn't there or is damaged.
        """
        path = self.folder(folder) / name
        mend = f"delete {path.parent} and run {command_line(f'run {maker}')} again"
        try:
            return read_json(path, form, error=WorkspaceError, mend=mend)
        except FileNotFoundError:
            raise WorkspaceError(f"{path} isn't there; run {command_line(f'run {maker}')} first") from None


def _is_foreign(folder: Path) -> bool:
    """Say whether a folder holds files other than prepared data."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(names) and RECORD not in names and not names >= _PREPARED


def write_json(path: Path, value: Json) -> None:
    """Write JSON, sorted and indented, whole or not at all."""
    replace_file(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def digest_of_files(folder: Path) -> dict[str, str]:
    """Hash every file of a folder but its record: relative path -> sha256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def digest(value: Json) -> str:
    """Hash a JSON value."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(folder: Path, fingerprint: str, origin: Json = None) -> None:
    """Record what a folder was made by and what it holds: the last thing that a stage writes.

    Args:
        folder: Of the stage.
        fingerprint: Of all that shapes its output.
        origin: The same in full, to say later what has changed.
    """
    write_json(folder / RECORD, {"fingerprint": fingerprint, "files": digest_of_files(folder), "origin": origin})


def origin_of(folder: Path) -> Json:
    """Return what a finished stage's folder was made by; None if that isn't known."""
    record = _read_record(folder)
    return record.get("origin") if record else None


def contents(folder: Path, maker: str) -> Mapping[str, str]:
    """Return the hashes of a finished stage's files, for the fingerprint of what reads them.

    Raises:
        WorkspaceError: The stage hasn't finished.
        CheckpointError: Its record is damaged.
    """
    record = _read_record(folder)
    if record is None:
        raise WorkspaceError(f"{folder} isn't there or unfinished; run {command_line(f'run {maker}')} first")
    return record["files"]


def is_current(folder: Path, fingerprint: str) -> bool:
    """Say whether a folder is complete and was made under this fingerprint.

    Raises:
        CheckpointError: It was, but one of its files has been changed since; or the record is damaged.
    """
    record = _read_record(folder)
    if record is None or record["fingerprint"] != fingerprint:
        return False
    found = digest_of_files(folder)
    if found == record["files"]:
        return True
    changed = sorted(
        name for name in record["files"].keys() | found.keys() if record["files"].get(name) != found.get(name)
    )
    raise CheckpointError(
        f"{folder} is damaged: {', '.join(changed)} changed after the stage wrote it. Bring it back with "
        f"`dvc checkout {folder}`, or delete {folder} to have it made again"
    )


def _read_record(folder: Path) -> _Seal | None:
    mend = f"bring it back with `dvc checkout {folder}`, or delete {folder} to have it made again"
    try:
        return read_json(folder / RECORD, _Seal, error=CheckpointError, mend=mend)
    except (FileNotFoundError, NotADirectoryError):
        return None


DECIDING = Path(".promotion.lock")


@contextmanager
def locked(workspace: Workspace) -> Iterator[None]:
    """Lock the workspace; the operating system unlocks it when the process ends, however it ends.

    The same process may lock it again, as a stage does inside the whole pipeline.

    Raises:
        WorkspaceError: Another run holds it.
    """
    workspace.open()
    lock = FileLock(workspace.root.absolute() / ".lock", thread_local=False, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise WorkspaceError(
            f"the workspace {workspace.root} is in use by another run; wait for it to end, or give another with "
            "--workspace DIR"
        ) from error
    try:
        workspace.put_back()
        yield
    finally:
        lock.release()


@contextmanager
def deciding() -> Iterator[None]:
    """Lock the aliases, from the first measurement to the last line of the record.

    Raises:
        WorkspaceError: Another promotion or rollback holds it.
    """
    lock = FileLock(DECIDING.absolute(), thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise WorkspaceError(
            "another promotion or rollback is at work here; wait for it to end, then look at promotions.jsonl and run "
            "again if there is still something to decide"
        ) from error
    try:
        yield
    finally:
        lock.release()
