"""Rewrite a settings file of an earlier version under today's names, and keep everything else, comments included.

The text is edited at the positions that PyYAML reports for keys and values, and then read again: unless the new file
says exactly what the old one said, under the new names, nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pruning.errors import SettingsError
from pruning.io.files import replace_file
from tasks.config.errors import RENAMED, describe, new_path, old_paths, with_new_names
from tasks.config.prune_schema import MODELS
from tasks.config.schema import Settings
from tasks.config.types import KIND
from tasks.config.yaml_io import parse_mapping, read_mapping

_RECALIBRATE, _RECOVER = "recalibrate", "recover"
"""`prune.recalibrate: {num_samples: N}` was the one method of what is `prune.recover` now."""

_Document = Mapping[str, Any]


@dataclass(frozen=True)
class _Edit:
    """Another text for a part of the file.

    Attributes:
        start: Of the part, in characters.
        end: Behind the part.
        text: What stands there then.
        said: What it changes, for the user.
    """

    start: int
    end: int
    text: str
    said: str


@dataclass(frozen=True)
class _Entry:
    """A key with its value, in a mapping of the file.

    Attributes:
        section: The mapping.
        index: Of the entry in it.
    """

    section: yaml.MappingNode
    index: int

    @property
    def key(self) -> yaml.Node:
        return self.section.value[self.index][0]  # type: ignore[no-any-return]  # the stubs say Any

    @property
    def value(self) -> yaml.Node:
        return self.section.value[self.index][1]  # type: ignore[no-any-return]


def migrate(path: Path) -> list[str]:
    """Rewrite a settings file so that it is accepted, whole or not at all.

    Returns:
        What was changed, a line each; empty where the file is one of today already.

    Raises:
        SettingsError: The file can't be read, or something in it has no equivalent today: the file is as it was.
    """
    old = read_mapping(path)
    text = path.read_bytes().decode("utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "it was read as a mapping"
    edits = sorted(_edits(text, root, old), key=lambda edit: edit.start)
    wanted = _migrated(old)
    for edit in reversed(edits):
        text = text[: edit.start] + edit.text + text[edit.end :]
    said = [edit.said for edit in edits]
    if not _says(text, wanted):
        todo = "\n  ".join(said)
        raise SettingsError(
            f"{path} can't be rewritten without losing something: it uses anchors, or a layout that isn't known. "
            f"Nothing was written; change by hand:\n  {todo}"
        )
    try:
        Settings.model_validate(wanted)
    except ValidationError as error:
        faults = "\n  ".join(describe(error, Settings))
        raise SettingsError(f"{path} can't be migrated by itself, so nothing was written:\n  {faults}") from error
    if edits:
        replace_file(path, text.encode())
    return said


def _says(text: str, wanted: _Document) -> bool:
    try:
        return parse_mapping(text, Path()) == wanted
    except SettingsError:
        return False


def _edits(text: str, root: yaml.MappingNode, old: _Document) -> Iterator[_Edit]:
    removed = {f"prune.{key}" for key in _foreign(old)}
    for path in removed:
        entry = _entry(root, path)
        kind = old["prune"].get(KIND, "structured")
        was = json.dumps(old["prune"][path.removeprefix("prune.")])
        yield _Edit(*_span(text, entry), "", f"{path} is removed: kind {kind} doesn't read it (it was {was})")
    for path in old_paths(old):
        if not any(path == other or path.startswith(f"{other}.") for other in removed):
            entry, new = _entry(root, path), new_path(path)
            name = new.rpartition(".")[2]
            if any(other.value == name for other, _ in entry.section.value):
                raise SettingsError(f"{path} and {new} are both given, which are the same; remove one of them")
            yield _Edit(entry.key.start_mark.index, entry.key.end_mark.index, name, f"{path} is {new} now")
    if _is_one_number(old):
        value = _entry(root, "benchmark.threads").value
        start, end = value.start_mark.index, value.end_mark.index
        yield _Edit(start, end, f"[{text[start:end]}]", f"benchmark.threads is a list now: [{text[start:end]}]")
    if _recalibrates(old) and f"prune.{_RECALIBRATE}" not in removed:
        yield from _recovering(_entry(root, f"prune.{_RECALIBRATE}"))


def _recovering(entry: _Entry) -> Iterator[_Edit]:
    key, value = entry.key, entry.value
    said = f"prune.{_RECALIBRATE} is prune.{_RECOVER} now, with method: {_RECALIBRATE}"
    yield _Edit(key.start_mark.index, key.end_mark.index, _RECOVER, said)
    assert isinstance(value, yaml.MappingNode), "it was read as a mapping"
    first = value.value[0][0].start_mark
    gap = ", " if value.flow_style else f"\n{' ' * first.column}"
    yield _Edit(first.index, first.index, f"method: {_RECALIBRATE}{gap}", f"prune.{_RECOVER}.method is named")


def _migrated(old: _Document) -> dict[str, Any]:
    """Return what a file is to say, under its new names."""
    found = with_new_names(old)
    if isinstance(prune := found.get("prune"), dict):
        for key in _foreign(old):
            prune.pop(RENAMED.get(f"prune.{key}", key), None)
        if _recalibrates(found):
            found["prune"] = {
                _RECOVER if key == _RECALIBRATE else key: {"method": _RECALIBRATE, **value}
                if key == _RECALIBRATE
                else value
                for key, value in prune.items()
            }
    if _is_one_number(found):
        found["benchmark"] = {**found["benchmark"], "threads": [found["benchmark"]["threads"]]}
    return found


def _foreign(old: _Document) -> list[str]:
    """Return the keys of `prune` that belong to another kind: they were without effect."""
    prune = old.get("prune")
    kind = prune.get(KIND, "structured") if isinstance(prune, dict) else None
    if kind not in MODELS:
        return []
    known = {key for model in MODELS.values() for key in model.model_fields}
    names = {key: _RECOVER if key == _RECALIBRATE else RENAMED.get(f"prune.{key}", key) for key in old["prune"]}
    return [key for key, name in names.items() if name in known - MODELS[kind].model_fields.keys()]


def _recalibrates(document: _Document) -> bool:
    prune = document.get("prune")
    return (
        isinstance(prune, dict)
        and isinstance(given := prune.get(_RECALIBRATE), dict)
        and bool(given)
        and _RECOVER not in prune
        and "method" not in given
    )


def _is_one_number(document: _Document) -> bool:
    """Say whether `benchmark.threads` is a number, as it once was."""
    benchmark = document.get("benchmark")
    threads = benchmark.get("threads") if isinstance(benchmark, dict) else None
    return isinstance(threads, int) and not isinstance(threads, bool)


def _entry(root: yaml.MappingNode, path: str) -> _Entry:
    """Return the entry of a path that is in the file."""
    section: Any = root
    for key in path.split("."):
        [index] = [n for n, (name, _) in enumerate(section.value) if name.value == key]
        found = _Entry(section, index)
        section = found.value
    return found


def _span(text: str, entry: _Entry) -> tuple[int, int]:
    """Say from where to where an entry stands, with the comments that belong to it."""
    key, pairs = entry.key, entry.section.value
    if entry.section.flow_style:
        if entry.index + 1 < len(pairs):
            return key.start_mark.index, pairs[entry.index + 1][0].start_mark.index
        start = _end(pairs[entry.index - 1][1]) if entry.index else key.start_mark.index
        return start, _end(entry.value)
    start, end = text.rfind("\n", 0, key.start_mark.index) + 1, _end(entry.value)
    if text[end - 1] != "\n":
        end += len(_line_from(text, end))
    while (line := _line_from(text, end)).lstrip(" ").startswith("#"):
        if len(line) - len(line.lstrip(" ")) <= key.start_mark.column:
            break
        end += len(line)
    return start, end


def _line_from(text: str, place: int) -> str:
    found = text.find("\n", place)
    return text[place:] if found < 0 else text[place : found + 1]


def _end(node: yaml.Node) -> int:
    """Say where a node ends: PyYAML takes a block for as long as up to what follows it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)
