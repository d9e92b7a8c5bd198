"""Read each file that shapes a command once, so that an edit during a run shapes only the next run.

Settings and code are read many times in a run, from its first stage to the record of the result. Every reader sees the
content that the first one saw.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")


@dataclass(frozen=True)
class _Held:
    files: dict[Path, bytes] = field(default_factory=dict)
    derived: dict[Hashable, Any] = field(default_factory=dict)


_held: list[_Held] = []
"""The files of the command that this process runs; the innermost block counts."""


def read_bytes(path: Path) -> bytes:
    """Return a file's content, as it was when the command first looked at it.

    Raises:
        OSError: It can't be read.
    """
    if not _held:
        return path.read_bytes()
    place, files = path.absolute(), _held[-1].files
    if place not in files:
        files[place] = path.read_bytes()
    return files[place]


def derive(key: Hashable, make: Callable[[], Found]) -> Found:
    """Return a value computed from cached files, computing it only once.

    Args:
        key: Identifies the value.
        make: Computes it.
    """
    if not _held:
        return make()
    known = _held[-1].derived
    if key not in known:
        known[key] = make()
    found: Found = known[key]
    return found


def edited() -> list[Path]:
    """Return the files that have changed since they were first read."""

    def now(place: Path) -> bytes | None:
        try:
            return place.read_bytes()
        except OSError:
            return None

    return [place for place, copy in (_held[-1].files if _held else {}).items() if now(place) != copy]


@contextmanager
def holding() -> Iterator[None]:
    """Cache what is read within the block; a nested block shares the outer one's cache."""
    _held.append(_held[-1] if _held else _Held())
    try:
        yield
    finally:
        _held.pop()


@contextmanager
def afresh() -> Iterator[None]:
    """Read files as they are now, past the cache."""
    _held.append(_Held())
    try:
        yield
    finally:
        _held.pop()
