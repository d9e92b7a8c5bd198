"""MLflow's store: opened once, created whole or not at all, with one message for each fault.

Its files are read without trusting them: one by one, of bounded size, no link followed, nothing executed.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from filelock import FileLock

from pruning.errors import WorkspaceError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from tasks.config.schema import Settings  # imports torch
import shutil
from pathlib import PurePosixPath

DECISIONS = Path("promotions.jsonl")
"""Every decision about a version, versioned in Git."""

ARTIFACTS = Path("mlartifacts")
"""Where a database store keeps the files of its runs, if the settings name no other place."""

_SQLITE = "sqlite:///"
_NO_SPACE = (ENOSPC, EDQUOT)
_FULL_DATABASE = "database or disk is full"
_SECRET = re.compile(r"(?i)pass|pwd|secret|token|key")
_PATIENCE_S = 10
_FIRST_FAULT_OF_A_SERVER = 500

T = TypeVar("T")

log = logging.getLogger("secateur")


def open_store(uri: str) -> MlflowClient:
    """Open the store; the first time, create its tables.

    Raises:
        ConnectionError: A server doesn't answer; this is found at once, not after MLflow's own retries.
        WorkspaceError: The database file is missing, though decisions about its versions are recorded.
    """
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    place = absolute(uri)
    if place.startswith(_SQLITE):
        _make_sqlite(Path(place.removeprefix(_SQLITE)))
    elif is_server(place):
        _knock(place)
    mlflow.set_tracking_uri(place)
    mlflow.set_registry_uri(place)
    return _client(place)


def _make_sqlite(place: Path) -> None:
    """Create a SQLite file with MLflow's tables under a temporary name, then rename it.

    MLflow needs seconds for the tables, with migrations that aren't transactions in SQLite. Killed in between, it
    would leave a store that is refused for ever.
    """
    if place.exists() and place.stat().st_size > 0:
        return
    refuse_loss(place)
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if place.exists() and place.stat().st_size > 0:
            return
        beside = place.with_name(f"{place.name}.partial")
        beside.unlink(missing_ok=True)
        make: Callable[[str, str], Any] = SqlAlchemyStore
        make(f"{_SQLITE}{beside}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        beside.replace(place)


def refuse_loss(place: Path) -> None:
    """Refuse to replace a registry that was in use and is missing now: the new one would begin with version 1 again.

    Args:
        place: Where a store is to be made.

    Raises:
        WorkspaceError: Decisions about its versions are there, the store isn't.
    """
    if DECISIONS.exists() and DECISIONS.stat().st_size > 0:
        raise WorkspaceError(
            f"MLflow's store {place} isn't there, though {DECISIONS} records decisions about versions in it. Bring the "
            f"store back from a backup; or, to begin a new registry with version 1, move {DECISIONS} away first"
        )
    if ARTIFACTS.is_dir() and any(ARTIFACTS.iterdir()):
        log.warning(
            "MLflow's store %s isn't there, though %s/ holds files of its runs: an empty one is made. Runs and "
            "versions of the one before are not in it",
            place,
            ARTIFACTS,
        )


def _knock(server: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    credentials: Callable[[str], Any] = get_default_host_creds  # it and the next have no types
    ask: Callable[..., Any] = http_request
    try:
        answer = ask(credentials(server), "/health", "GET", max_retries=0, timeout=_PATIENCE_S, raise_on_status=False)
    except MlflowException as error:
        raise ConnectionError("its server doesn't answer") from error
    if answer.status_code >= _FIRST_FAULT_OF_A_SERVER:
        raise ConnectionError(f"its server answers with status {answer.status_code}")


@cache
def _client(place: str) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    return MlflowClient(place, place)


def absolute(uri: str) -> str:
    """Make a SQLite address independent of the current folder; leave any other as it is."""
    if not uri.startswith(_SQLITE) or uri.startswith(_SQLITE + "/"):
        return uri
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"


def hash_of_content(uri: str) -> str | None:
    """Hash all that a store holds, where that can be done without asking it: it is a file. None for any other."""
    place = absolute(uri)
    if not place.startswith(_SQLITE) or not Path(place.removeprefix(_SQLITE)).is_file():
        return None
    files = [Path(f"{place.removeprefix(_SQLITE)}{suffix}") for suffix in ("", "-wal", "-journal")]
    return sha256(b"".join(sha256(path.read_bytes()).digest() for path in files if path.exists())).hexdigest()


def secrets_in(uri: str) -> list[str]:
    """Return the passwords in an address, as they are written there."""
    user, at, _ = urlsplit(uri).netloc.rpartition("@")
    found = [user.partition(":")[2]] if at else []
    found += [value for name, value in parse_qsl(urlsplit(uri).query) if _SECRET.search(name)]
    raw = [part.partition("=") for part in urlsplit(uri).query.split("&")]
    found += [value for name, _, value in raw if _SECRET.search(name)]
    return sorted({text for text in found for text in (text, unquote(text)) if text}, key=len, reverse=True)


def without_secrets(text: str, uri: str) -> str:
    """Return a text with the passwords of an address removed."""
    for secret in secrets_in(uri):
        text = text.replace(secret, "***")
    return text


def shown(uri: str) -> str:
    """Return an address for people: without its passwords."""
    if not secrets_in(uri):
        return uri
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    pairs = [part.partition("=") for part in parts.query.split("&")]
    query = "&".join(f"{key}{sign}{'***' if _SECRET.search(key) else value}" for key, sign, value in pairs)
    return parts._replace(netloc=f"{name}:***@{host}" if at and colon else parts.netloc, query=query).geturl()


def is_server(uri: str) -> bool:
    """Say whether an address is an MLflow server rather than a database or folder."""
    return uri.startswith(("http://", "https://"))


def lookup(ask: Callable[..., T], *names: str) -> T | None:
    """Ask the store for one thing by name; None if it doesn't exist."""
    from mlflow.exceptions import MlflowException

    try:
        return ask(*names)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def all_pages(ask: Callable[[str | None], Any]) -> list[Any]:
    """Return everything that a search finds.

    Args:
        ask: Returns the page for a token; None asks for the first.
    """
    found: list[Any] = []
    token = None
    while True:
        page = ask(token)
        found += page
        token = page.token
        if not token:
            return found


def quoted(text: str) -> str:
    """Quote a text for one of MLflow's filters, which know no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"


@contextmanager
def store_faults(settings: Settings) -> Iterator[None]:
    """Turn MLflow's exceptions into one message that names the store; a full disk stays an OSError.

    Raises:
        WorkspaceError: The store can't be used.
        OSError: The disk is full.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets some of the store's errors through as they are

    uri = settings.tracking.uri
    try:
        yield
    except ImportError as error:
        raise WorkspaceError(
            f"MLflow's store {shown(absolute(uri))} needs {error.name or error}, which isn't installed; install it "
            "(for PostgreSQL: `pip install 'secateur[postgresql]'`), or name another store by tracking.uri"
        ) from error
    except (MlflowException, SQLAlchemyError, OSError) as error:
        full = next((one for one in _causes(error) if isinstance(one, OSError) and one.errno in _NO_SPACE), None)
        if full is not None or _FULL_DATABASE in str(error):
            raise full or OSError(ENOSPC, os.strerror(ENOSPC), uri) from error
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise WorkspaceError(
            f"MLflow's store {shown(absolute(uri))} can't be used: {without_secrets(said, uri)}. Nothing "
            "that was trained is lost: the ledger holds it. Make sure that the store is there or correct tracking.uri, "
            "then run the same command again"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


MOST_FILES = 5_000
MOST_BYTES = 16 * 2**30
_DEEPEST = 12


class Artifacts:
    """A folder of artefacts.

    Attributes:
        files: Path of each file, relative to the folder -> its size in bytes. Links in a store on this machine are left
            out, as are names that lead elsewhere.
    """

    def __init__(self, root: str, below: str = "") -> None:
        """List a folder.

        Args:
            root: Its address, as MLflow gives it for a run or a model.
            below: A folder in it, to which all paths are relative.

        Raises:
            WorkspaceError: There are too many files in it.
            MlflowException: The store can't be used.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository: Any = get_artifact_repository(root)
        self._repository, self._below = repository, below
        here = getattr(repository, "artifact_dir", None)  # of a store on this machine
        self._here = Path(here) if here is not None else None
        self.files: dict[str, int] = {}
        for name, size in self._walk() if self._here else self._listed(below, 0):
            if not is_plain(name):
                continue
            self.files[name] = size
            if len(self.files) > MOST_FILES:
                raise WorkspaceError(f"MLflow's folder {below or root} holds more than {MOST_FILES:,} files")

    def bring(self, name: str, place: Path, most: int = MOST_BYTES) -> bool:
        """Copy a file to a path; return whether the file exists.

        Raises:
            WorkspaceError: It is larger than it may be.
        """
        size = self.files.get(name)
        if size is None:
            return False
        if size > most:
            raise WorkspaceError(f"MLflow's file {self._below}/{name} has {size:,} bytes; at most {most:,} are read")
        place.parent.mkdir(parents=True, exist_ok=True)
        path = f"{self._below}/{name}" if self._below else name
        if self._here is not None:
            shutil.copyfile(self._here / path, place, follow_symlinks=False)
        else:
            Path(self._repository.download_artifacts(path, str(place.parent))).replace(place)
        return True

    def _walk(self) -> Iterator[tuple[str, int]]:
        """List a folder of this machine; neither it nor what is in it is a link."""
        assert self._here is not None
        top = self._here / self._below
        if any(path.is_symlink() for path in (top, *top.parents) if path.is_relative_to(self._here)):
            return
        for folder, _, names in os.walk(top, followlinks=False):
            for path in (Path(folder, name) for name in names):
                if path.is_file() and not path.is_symlink():
                    yield path.relative_to(top).as_posix(), path.stat().st_size

    def _listed(self, folder: str, depth: int) -> Iterator[tuple[str, int]]:
        for found in self._repository.list_artifacts(folder or None) if depth < _DEEPEST else ():
            path = str(found.path)
            if found.is_dir:
                if is_plain(path) and PurePosixPath(path).parent == PurePosixPath(folder):
                    yield from self._listed(path, depth + 1)
            elif path.startswith(f"{self._below}/" if self._below else ""):
                yield path.removeprefix(f"{self._below}/" if self._below else ""), int(found.file_size or 0)


def is_plain(name: str) -> bool:
    """Say whether a name is a plain relative path downwards, on any operating system."""
    parts = name.split("/")
    odd = any(not part or part.strip(". ") != part or len(part) > 255 for part in parts)
    return not odd and len(name) <= 1000 and name.isprintable() and not set(name) & set('\\:*?"<>|')
