"""Keep two runs out of one workspace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from pruning.errors import WorkspaceError
from tasks.workspace import Workspace


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
        yield
    finally:
        lock.release()
