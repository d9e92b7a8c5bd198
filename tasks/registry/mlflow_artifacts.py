"""Read files from MLflow without trusting them: one by one, of bounded size, no link followed, nothing executed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pruning.errors import WorkspaceError

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
