"""What the files that a data set reads hold: a hash over all of them, of which only those that changed are opened.

    sources (files, folders, globs, URLs) ──► name, size, sha256 of each, in order ──► sha256

Hashes of files are kept in the workspace by path, inode, size and time of change, so that a second look takes no longer
than listing the files. Torch isn't imported.
"""

from __future__ import annotations

import glob
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from pruning.errors import DataError
from tasks.file_cache import derive
from tasks.stage_table import Stage
from tasks.workspace import Workspace

CACHE = ".source_hashes.sqlite"
_AT_ONCE = 1000  # files whose hashes are kept together: what a kill in between costs
_RECENT_NS = 2_000_000_000  # a file that changed so shortly ago might change again without another time
_BLOCK = 1 << 20


@dataclass(frozen=True)
class _File:
    name: str
    path: str
    inode: int
    size: int
    changed_ns: int


def hash_sources(sources: Sequence[str], workspace: Workspace) -> str:
    """Return a sha256 over the names and contents of all files that sources name.

    Args:
        sources: Files, folders (all below them, but what begins with a dot), globs with `*`, `?` and `**`, or URLs that
            fsspec opens, such as s3://bucket/folder, of which the store's own checksum is taken.
        workspace: Keeps the hashes.

    Raises:
        DataError: A source matches nothing, or a file can't be read.
    """
    digest = sha256()
    with closing(_open(workspace.root / CACHE)) as cache:
        for source in sources:
            entries = _of_url(source) if _is_url(source) else _hashed(_files(_local(source)), cache)
            count = 0
            for count, entry in enumerate(entries, 1):  # noqa: B007 - it is asked for below
                digest.update(json.dumps(entry).encode())
            if not count:
                raise DataError(f"the data set names the source {source!r}, which matches no file; mend its sources")
            digest.update(b"\n")
    return digest.hexdigest()


def _is_url(source: str) -> bool:
    return "://" in source and not source.startswith(("file://", "local://"))


def _local(source: str) -> str:
    return os.path.abspath(Path(source.partition("://")[2] if "://" in source else source).expanduser())  # noqa: PTH100


def _files(source: str) -> list[_File]:
    """List the files of a source by their names: below it, below the fixed part of a glob, or alone."""
    if glob.has_magic(source):
        fixed = Path(*(part for part in Path(source).parts[: _first_magic(source)]))
        found = [path for path in glob.glob(source, recursive=True) if not os.path.isdir(path)]  # noqa: PTH207, PTH112
        pairs = [(os.path.relpath(path, fixed), path) for path in found]
    elif os.path.isdir(source):  # noqa: PTH112 - a million files are listed in seconds, without an object for each
        pairs = [(path[len(source) :].lstrip(os.sep), path) for path in _below(source)]
    else:
        pairs = [(os.path.basename(source), source)] if os.path.exists(source) else []  # noqa: PTH110, PTH119
    try:
        return [_stated(name, path) for name, path in sorted(pairs)]
    except OSError as error:
        raise DataError(
            f"{error.filename} can't be read ({error.strerror}); the data set names it as a source"
        ) from error


def _first_magic(source: str) -> int:
    return next(at for at, part in enumerate(Path(source).parts) if glob.has_magic(part))


def _below(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(entry.path)
            else:
                yield entry.path


def _stated(name: str, path: str) -> _File:
    found = os.stat(path)  # noqa: PTH116
    return _File(name, path, found.st_ino % 2**63, found.st_size, found.st_mtime_ns)


def _open(path: Path) -> sqlite3.Connection:
    """Open the hashes that are kept; a damaged file is begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in ("as it is", "anew"):
        cache = sqlite3.connect(path)
        try:
            cache.execute(
                "create table if not exists hashes (path text primary key, inode int, size int, changed int, sha text)"
            )
            cache.execute("select count(sha) from hashes").fetchone()
        except sqlite3.DatabaseError:
            cache.close()
            path.unlink(missing_ok=True)
        else:
            return cache
    raise DataError(f"{path} can't be written; free some disk space or mend the folder's permissions")


def _hashed(files: Sequence[_File], cache: sqlite3.Connection) -> Iterable[tuple[str, int, str]]:
    """Return name, size and sha256 of each file; those that aren't known are opened, several at a time."""
    rows = cache.execute("select path, inode, size, changed, sha from hashes")
    known = {path: (inode, size, changed, sha) for path, inode, size, changed, sha in rows}
    found: dict[str, str] = {}
    for file in files:
        inode, size, changed, sha = known.get(file.path, (0, 0, 0, ""))
        if sha and (inode, size, changed) == (file.inode, file.size, file.changed_ns):
            found[file.path] = sha
    unknown = iter([file for file in files if file.path not in found])
    with ThreadPoolExecutor() as pool:
        while some := list(islice(unknown, _AT_ONCE)):
            hashes = dict(zip((file.path for file in some), pool.map(_hash, some), strict=True))
            found |= hashes
            before = time.time_ns() - _RECENT_NS
            settled = [file for file in some if file.changed_ns < before]
            cache.executemany(
                "insert or replace into hashes values (?, ?, ?, ?, ?)",
                [(file.path, file.inode, file.size, file.changed_ns, hashes[file.path]) for file in settled],
            )
            cache.commit()
    return [(file.name, file.size, found[file.path]) for file in files]


def _hash(file: _File) -> str:
    digest = sha256()
    try:
        with open(file.path, "rb") as content:  # noqa: PTH123
            while block := content.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{file.path} can't be read ({error.strerror}); the data set names it as a source") from error
    return digest.hexdigest()


def _of_url(url: str) -> Iterator[tuple[str, int, str]]:
    """Yield name, size and the store's own checksum of each file."""
    import fsspec  # comes with torch

    try:
        system, path = fsspec.core.url_to_fs(url)
        found = system.glob(path) if glob.has_magic(path) else system.find(path)
        for one in sorted(found):
            yield str(one).removeprefix(str(path)), int(system.size(one) or 0), str(system.ukey(one))
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        raise DataError(f"the source {url!r} can't be listed: {type(error).__name__}: {error}") from error


SOURCES_CHANGED = "files that the data are read from changed"
"""Why `prepare` runs again, in words."""


def reads_others(stage: Stage, workspace: Workspace) -> bool:
    """Say whether a stage reads files that are others than those it was made from: so far `prepare` alone reads any."""
    return stage.name == "prepare" and not sources_unchanged(workspace)


def sources_unchanged(workspace: Workspace) -> bool:
    """Say whether the files that the prepared data are read from are the same; True where nothing goes by them."""
    try:
        content = (workspace.folder("data") / "meta.json").read_bytes()
        found = json.loads(content)
        sources, known = found.get("sources"), found.get("sources_sha256")
    except (OSError, ValueError, AttributeError):
        return True  # whoever reads that file says what is wrong with it
    if known is None:
        return True

    def same() -> bool:
        try:
            return bool(hash_sources(sources, workspace) == known)
        except DataError:
            return False  # `prepare` says why

    return derive(("sources", workspace, content), same)
