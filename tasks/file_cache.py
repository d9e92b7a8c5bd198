"""Files that say what a command does, read once: what is edited while it runs shapes the next one.

Settings and code are looked at many times in a run, from its first stage to the record of what came out. All of them
see what the first look saw.
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
"""Of the command that this process runs; the last one counts."""


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
    """Return what follows from files that are held, worked out once.

    Args:
        key: What tells it from all else that is derived.
        make: Works it out.
    """
    if not _held:
        return make()
    known = _held[-1].derived
    if key not in known:
        known[key] = make()
    found: Found = known[key]
    return found


def edited() -> list[Path]:
    """Return the files that aren't any more what they were at the first look."""

    def now(place: Path) -> bytes | None:
        try:
            return place.read_bytes()
        except OSError:
            return None

    return [place for place, copy in (_held[-1].files if _held else {}).items() if now(place) != copy]


@contextmanager
def holding() -> Iterator[None]:
    """Hold what is read within the block; a block inside another holds what that one does."""
    _held.append(_held[-1] if _held else _Held())
    try:
        yield
    finally:
        _held.pop()


@contextmanager
def afresh() -> Iterator[None]:
    """Look at the files as they are now."""
    _held.append(_Held())
    try:
        yield
    finally:
        _held.pop()
