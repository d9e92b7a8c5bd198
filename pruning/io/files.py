"""Files and folders that are whole or not there, whenever the process dies; and the one reader of JSON.

The reader is bounded in size and depth, and whatever is wrong with a file is one message. Beside what isn't JSON, it
refuses a value that isn't exactly of the type asked for (`true` is no 1, null is no object), a name that stands twice
in an object, a number that isn't finite, and an integer of more than 64 bits.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pruning.errors import SecateurError

_writer = ""


def name_writer(name: str) -> None:
    """Let `replace_file` of this process write beside under a name of its own, where others write the same files."""
    global _writer
    _writer = f"{name}."


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk, rename it into its place.

    Raises:
        OSError: The system refuses, for want of space perhaps: it names the file, and what was written of it is gone.
    """
    beside = path.with_name(f".{path.name}.{_writer}partial")
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


MOST_BYTES = 256 * 2**20
_LARGEST = 2**63 - 1
_MOST_DIGITS = 20
_SHOWN = 60

T = TypeVar("T")


class JsonError(ValueError):
    """A text isn't JSON, or holds something else than what was asked for."""


def read_json(path: Path, form: type[T], *, error: type[SecateurError], mend: str) -> T:
    """Read a file that holds one JSON value.

    Args:
        path: The file.
        form: What it has to hold: a model, a typed dictionary, or any other type that pydantic knows.
        error: What to raise where the file is damaged.
        mend: What to do about it, for the message.

    Raises:
        FileNotFoundError: There is nothing at the path; the caller knows who makes it.
        SecateurError: Of the given kind: the file is damaged.
    """
    return parse_json(read_bytes(path, error=error, mend=mend), form, source=str(path), error=error, mend=mend)


def parse_json(content: bytes | str, form: type[T], *, source: str, error: type[SecateurError], mend: str) -> T:
    """Read JSON that was in a file or elsewhere.

    Args:
        content: The text.
        form: What it has to hold.
        source: Where it was, for the message.
        error: What to raise where it is damaged.
        mend: What to do about it, for the message.

    Raises:
        SecateurError: Of the given kind: it is damaged.
    """
    try:
        return checked_json(content, form)
    except JsonError as fault:
        raise error(f"{source} is damaged: {fault}; {mend}") from fault


def checked_json(content: bytes | str, form: type[T]) -> T:
    """Read JSON of a type.

    Raises:
        JsonError: It isn't JSON, or not of that type: the text says what is wrong and where.
    """
    if len(content) > MOST_BYTES:
        raise JsonError(f"{len(content):,} bytes, where at most {MOST_BYTES:,} are read")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        json.loads(text, **_HOOKS)
        return cast(T, _adapter(cast(Any, form)).validate_json(text, strict=True))
    except UnicodeDecodeError as fault:
        raise JsonError(f"no UTF-8 text: {fault.reason} at byte {fault.start}") from fault
    except json.JSONDecodeError as fault:
        raise JsonError(f"no JSON: {fault.msg} in line {fault.lineno}, column {fault.colno}") from fault
    except RecursionError as fault:
        raise JsonError("nested too deeply") from fault
    except ValidationError as fault:
        raise JsonError(first_fault(fault)) from fault


def read_bytes(path: Path, *, error: type[SecateurError], mend: str, most: int | None = MOST_BYTES) -> bytes:
    """Read a file of bounded size; a folder, a pipe or a device is none.

    Args:
        path: The file.
        error: What to raise where it is none, or too large.
        mend: What to do about it, for the message.
        most: Bytes; None for any number.

    Raises:
        FileNotFoundError: There is nothing at the path.
        SecateurError: Of the given kind: it isn't a file, or is too large.
    """
    found = path.stat()
    if not path.is_file():
        raise error(f"{path} is no file; {mend}")
    if most is not None and found.st_size > most:
        raise error(f"{path} has {found.st_size:,} bytes, where at most {most:,} are read; {mend}")
    return path.read_bytes()


class _Index(BaseModel):
    weight_map: dict[str, str] = Field(min_length=1)


def shards_of(index: Path) -> dict[Path, list[str]]:
    """Read the index of weights that are divided over several files, as `save_pretrained` of transformers writes it.

    Returns:
        The files, which lie beside it, each with the names of its tensors.

    Raises:
        JsonError: It is no such index, or names a file that lies elsewhere.
        OSError: It can't be read.
    """
    files: dict[Path, list[str]] = {}
    for name, file in checked_json(index.read_bytes(), _Index).weight_map.items():
        if Path(file).name != file:
            raise JsonError(f"its weight_map has {name!r} in {file[:_SHOWN]!r}, which is no file beside it")
        files.setdefault(index.parent / file, []).append(name)
    return files


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def first_fault(error: ValidationError) -> str:
    """Say what is wrong first, and how much more there is; without what pydantic adds for programmers."""
    faults = error.errors(include_url=False)
    first = faults[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    found = repr(first["input"])
    found = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}…"
    message = first["msg"].removeprefix("Value error, ")
    text = f"{message[0].lower()}{message[1:]}, found {found}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{place}: {text}{more}" if place else f"{text}{more}"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonError(f"{twice[:_SHOWN]!r} stands twice in an object")
    return found


def _bounded(digits: str) -> int:
    if len(digits) > _MOST_DIGITS or not -_LARGEST <= int(digits) <= _LARGEST:
        raise JsonError(f"the integer {digits[:_MOST_DIGITS]}… has more than 64 bits")
    return int(digits)


def _finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise JsonError(f"{text[:_MOST_DIGITS]} is no finite number")
    return number


_HOOKS: dict[str, Any] = {
    "object_pairs_hook": _distinct,
    "parse_int": _bounded,
    "parse_float": _finite,
    "parse_constant": _finite,
}
