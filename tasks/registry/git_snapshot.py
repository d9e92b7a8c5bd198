"""Record the code as it is, uncommitted edits included, and bring it back.

A snapshot is a commit and a patch on top of it; the id of the resulting tree proves that it is complete. Git's own
index, work tree and objects aren't touched: the index and new objects are in a temporary folder.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pruning.errors import WorkspaceError

LARGEST_PATCH = 20 * 2**20


@dataclass(frozen=True)
class Source:
    """The code at one moment.

    Attributes:
        commit: What was checked out.
        tree: Git's id of all files, tracked or not, except ignored ones.
        patch: From the commit to the tree; empty if nothing was edited.
    """

    commit: str
    tree: str
    patch: bytes


def snapshot() -> Source | None:
    """Return the code as it is now; None if there is no Git repository or no commit in it."""
    try:
        commit = _git("rev-parse", "HEAD").decode().strip()
        with _aside() as environment:
            _git("read-tree", "HEAD", environment=environment)
            _git("add", "--all", environment=environment)
            tree = _git("write-tree", environment=environment).decode().strip()
            patch = _git("diff", "--binary", "--full-index", "--cached", "HEAD", environment=environment)
    except (WorkspaceError, FileNotFoundError):
        return None
    return Source(commit, tree, patch)


def bring_back(source: Source, into: Path) -> None:
    """Write the code of a snapshot into a folder.

    Raises:
        WorkspaceError: This clone doesn't have the commit, commit and patch don't give the tree, or a link in it leads
            out of the folder.
    """
    try:
        _git("cat-file", "-e", f"{source.commit}^{{commit}}")
    except WorkspaceError as error:
        raise WorkspaceError(
            f"Git has no commit {source.commit} here; fetch it (`git fetch --all`) from where the version was made"
        ) from error
    with _aside() as environment:
        _git("read-tree", source.commit, environment=environment)
        if source.patch:
            _git("apply", "--cached", "--binary", "-", environment=environment, given=source.patch)
        tree = _git("write-tree", environment=environment).decode().strip()
        if tree != source.tree:
            raise WorkspaceError(f"commit and patch give the tree {tree}; expected {source.tree}")
        packed = _git("archive", "--format=tar", tree, environment=environment)
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(into, filter="data")
    except tarfile.TarError as error:
        raise WorkspaceError(f"the code can't be written: {error}") from error


def tracks(commit: str, *places: str) -> bool:
    """Say whether one of these files is in Git at a commit and unchanged in the current folder.

    Args:
        commit: Its full id.
        places: Of the files, from the current folder.
    """
    try:
        prefix = _git("rev-parse", "--show-prefix", here=True).decode().rstrip("\n")
        wanted = [f"{prefix}{place}" for place in places if Path(place).is_file() and not Path(place).is_symlink()]
        found = _git("ls-tree", "-z", "--name-only", "--full-tree", commit, "--", *wanted) if wanted else b""
    except (WorkspaceError, FileNotFoundError):
        return False
    return any(name in wanted for name in found.decode(errors="replace").split("\0"))


def mentions(commit: str, text: str, *patterns: str) -> bool:
    """Say whether a file of a commit, with a matching name, holds a text as a whole word."""
    try:
        _git("grep", "--quiet", "--fixed-strings", "--word-regexp", "-e", text, commit, "--", *patterns)
    except (WorkspaceError, FileNotFoundError):
        return False
    return True


@contextmanager
def _aside() -> Iterator[dict[str, str]]:
    """Yield an environment in which Git uses a temporary index and a temporary place for new objects."""
    objects = _top() / _git("rev-parse", "--git-path", "objects").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "objects").mkdir()
        yield {
            "GIT_INDEX_FILE": str(place / "index"),
            "GIT_OBJECT_DIRECTORY": str(place / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
        }


def _git(
    *command: str, environment: dict[str, str] | None = None, given: bytes | None = None, here: bool = False
) -> bytes:
    top = Path.cwd() if here else _top()
    done = subprocess.run(
        ["git", "-c", "core.autocrlf=false", *command],
        cwd=top,
        env={**os.environ, **(environment or {})},
        input=given,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise WorkspaceError(f"git {command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _top() -> Path:
    done = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorkspaceError("there is no Git repository here")
    return Path(done.stdout.strip())
