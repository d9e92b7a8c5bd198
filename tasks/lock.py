"""Keep two runs out of one workspace, and two decisions out of one registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pruning.errors import WorkspaceError
from tasks.workspace import Workspace

DECIDING = Path(".promotion.lock")


@contextmanager
def locked(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace; the operating system lets go of it when the process ends, however it ends.

    The same process may take it again, as a stage does inside the whole pipeline.

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
    """Hold the right to move aliases, from the measuring to the last line.

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
