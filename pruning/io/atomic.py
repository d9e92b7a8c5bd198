"""Files and folders that are whole or not there, whenever the process dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, rename it into its place.

    Raises:
        OSError: The system refuses, for want of space perhaps: it names the file, and what was written of it is gone.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)  # a link that lies there isn't written through
        with beside.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise


@contextmanager
def writing(place: Path) -> Iterator[Path]:
    """Give an empty folder to write into, and rename it into its place when the block ends well.

    Whatever lay in the place before is replaced; on any fault it is left as it was. It takes two renames, as no call
    swaps two folders on every system:

        written beside ─► old one steps aside ─► new one goes to its place ─► old one is discarded
                                               ▲
                          died here: `put_back` undoes the step aside
    """
    put_back(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if place.exists():
        place.rename(_aside(place))
    beside.rename(place)
    put_back(place)


def put_back(place: Path) -> None:
    """Undo, or finish, a replacement that a kill has cut off. Whoever calls it is the only one who writes there."""
    aside, discarded = _aside(place), place.with_name(f".{place.name}.discarded")
    if aside.is_dir() and not place.exists():
        aside.rename(place)
    elif aside.is_dir():
        shutil.rmtree(discarded, ignore_errors=True)
        aside.rename(discarded)  # what steps aside is whole as long as it has its name
    shutil.rmtree(discarded, ignore_errors=True)


def put_all_back(folder: Path) -> None:
    """Undo, or finish, every replacement within a folder that a kill has cut off."""
    for path in sorted(folder.glob(f".*{_ASIDE}")):
        put_back(path.with_name(path.name.removeprefix(".").removesuffix(_ASIDE)))


_ASIDE = ".replaced"


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}{_ASIDE}")
