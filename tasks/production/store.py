"""MLflow's store: opened once, made whole or not at all, its faults as one message."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pruning.errors import WorkspaceError
from tasks.params.settings import Settings

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_SQLITE = "sqlite:///"
_PATIENCE_S = 10
_FIRST_FAULT_OF_A_SERVER = 500


def open_store(uri: str) -> MlflowClient:
    """Open the store; the first time, tables are made.

    Raises:
        ConnectionError: It is a server that doesn't answer: found out at once, not after MLflow's own retries.
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
    """Make a SQLite file with MLflow's tables beside its place, and rename it into it.

    MLflow takes seconds to make them, by migrations that aren't transactions in SQLite. A store in which it was killed
    then would be refused for ever.
    """
    if place.exists():
        return
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if place.exists():
            return
        beside = place.with_name(f"{place.name}.partial")
        beside.unlink(missing_ok=True)
        make: Callable[[str, str], Any] = SqlAlchemyStore
        make(f"{_SQLITE}{beside}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        beside.replace(place)


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
    """Make a SQLite address independent of the folder that a process runs in; leave any other as it is."""
    if not uri.startswith(_SQLITE) or uri.startswith(_SQLITE + "/"):
        return uri
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"


def is_server(uri: str) -> bool:
    """Say whether an address is that of an MLflow server, and not of a store itself."""
    return uri.startswith(("http://", "https://"))


@contextmanager
def store_faults(settings: Settings) -> Iterator[None]:
    """Turn what MLflow raises into one message that names the store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets some of the store's errors through as they are

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise WorkspaceError(
            f"MLflow's store {absolute(settings.tracking.uri)} can't be used: {str(error).splitlines()[0]}. Nothing "
            "that was trained is lost: the ledger holds it. See that the store is there, or mend tracking.uri, and run "
            "the same command again"
        ) from error
