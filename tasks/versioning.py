"""The only file that knows DVC: which stages it calls changed, and how a finished stage is committed to it."""

from __future__ import annotations

import logging
import os
from typing import Any

from pruning.errors import WorkspaceError

INSIDE = "DVC_STAGE"
"""DVC sets this variable for the command of a stage that it runs."""


class Versions:
    """The DVC repository of the current folder."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            WorkspaceError: There is none, or the command runs inside one of its stages.
        """
        if INSIDE in os.environ:
            raise WorkspaceError("a stage that DVC runs is committed by DVC itself; it can't commit from inside")
        logging.getLogger("dvc").setLevel(logging.CRITICAL)
        from dvc.exceptions import NotDvcRepoError
        from dvc.scm import SCMError

        try:
            self._open()
        except NotDvcRepoError as error:
            raise WorkspaceError(
                "this folder is no DVC repository, so results can't be versioned; run `git init && dvc init` here, "
                "or add --no-commit"
            ) from error
        except SCMError as error:
            raise WorkspaceError(
                f"DVC can't use the Git repository of this folder ({error}); mend it, or add --no-commit"
            ) from error

    def changed(self) -> frozenset[str]:
        """Return the names of the stages whose code, settings, inputs or outputs DVC calls changed.

        Raises:
            WorkspaceError: `dvc.yaml` isn't there or is malformed, or DVC is busy.
        """
        repository = self._open()
        return frozenset(self._run(repository.status))

    def commit(self, stage: str) -> None:
        """Record a finished stage in `dvc.lock` and put its output into the cache.

        Raises:
            WorkspaceError: DVC refuses.
        """
        repository = self._open()
        self._run(lambda: repository.commit(stage, force=True))

    @staticmethod
    def _open() -> Any:
        from dvc.repo import Repo

        return Repo()

    @staticmethod
    def _run(action: Any) -> Any:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError

        try:
            return action()
        except LockError as error:
            raise WorkspaceError("DVC is busy in another process; run again when that has ended") from error
        except DvcException as error:
            raise WorkspaceError(f"DVC can't go on: {error}; mend it, or add --no-commit") from error


def inside_dvc() -> bool:
    """Say whether DVC runs this command as one of its stages."""
    return INSIDE in os.environ
