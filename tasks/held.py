"""Files that say what a command does, read once: what is edited while it runs shapes the next one.

Settings and code are looked at many times in a run, from its first stage to the record of what came out. All of them
see what the first look saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_copies: list[dict[Path, bytes]] = []
"""Of the command that this process runs; the last one counts."""


def read_bytes(path: Path) -> bytes:
    """Return a file's content, as it was when the command first looked at it.

    Raises:
        OSError: It can't be read.
    """
    if not _copies:
        return path.read_bytes()
    place = path.absolute()
    if place not in _copies[-1]:
        _copies[-1][place] = path.read_bytes()
    return _copies[-1][place]


def edited() -> list[Path]:
    """Return the files that aren't any more what they were at the first look."""

    def now(place: Path) -> bytes | None:
        try:
            return place.read_bytes()
        except OSError:
            return None

    return [place for place, copy in (_copies[-1] if _copies else {}).items() if now(place) != copy]


@contextmanager
def holding() -> Iterator[None]:
    """Hold what is read within the block; a block inside another holds what that one does."""
    _copies.append(_copies[-1] if _copies else {})
    try:
        yield
    finally:
        _copies.pop()


@contextmanager
def afresh() -> Iterator[None]:
    """Look at the files as they are now."""
    _copies.append({})
    try:
        yield
    finally:
        _copies.pop()
