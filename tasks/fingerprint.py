"""Everything that shapes a stage's output: settings, code, versions, hashes of its inputs; and what has changed since.

origin ─► fingerprint      the same fingerprint, the same bytes
   │
   ├─► stage.json          beside the output, so that what has changed since can be said
   └─► artifacts/code/     the part that DVC can't see by itself, a file for each stage, which DVC depends on
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.io.files import JsonError, checked_json, shards_of
from tasks.code_closure import code_of, versions
from tasks.file_cache import derive
from tasks.stage_table import STAGES, STOP_ONLY, Stage, find_stage
from tasks.workspace import Json, Workspace, contents, digest, write_json

if TYPE_CHECKING:
    from tasks.config.schema import Settings  # imports torch

_MOST_SHOWN = 8
_LONGEST = 60
_FILES = (("model", "weights"), ("model", "from_pretrained"), ("profile", "path"))
"""Settings that name a file, or a folder of files: their content shapes the output of stages that read the sections."""


def changes(before: Json, now: Json) -> str:
    """Describe in one line how two origins differ."""
    found = list_changes(before, now)
    more = [f"and {len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
    return "; ".join(found[:_MOST_SHOWN] + more)


_DEFAULT = object()
"""Stands for the value of a setting that is left out."""


def list_changes(before: Json, now: Json) -> list[str]:
    """Describe how two origins differ: every setting, module, version, file and input that changed."""
    found = [
        *_changed_settings("", before.get("settings"), now["settings"]),
        *_changed_facts(before.get("facts") or {}, now["facts"]),
        *(
            f"module {name} {_verb(old, new, 'is executed now', 'is not executed any more', 'was edited')}"
            for name, old, new in _pairs(before.get("modules"), now["modules"])
        ),
        *(
            f"{name} {old or 'none'} → {new or 'none'}"
            for name, old, new in _pairs(before.get("versions"), now["versions"])
        ),
        *(f"the file of {name} changed" for name, _, _ in _pairs(before.get("files"), now["files"])),
        *(
            f"{name} of {need} {_verb(old, new, 'is new', 'is gone', 'changed')}"
            for need in sorted(now["reads"].keys() | (before.get("reads") or {}).keys())
            for name, old, new in _pairs((before.get("reads") or {}).get(need), now["reads"].get(need))
        ),
    ]
    return found or ["the record of what it was made by has another format"]


def _changed_facts(before: Mapping[str, Json], now: Mapping[str, Json]) -> Iterator[str]:
    unlike = "unlike_default"  # settings by their paths; one that is missing has its default
    yield from _changed_settings("", before.get(unlike, {}), now.get(unlike, {}), missing=_DEFAULT)
    others = ({name: value for name, value in facts.items() if name != unlike} for facts in (before, now))
    yield from _changed_settings("", *others)


def _changed_settings(name: str, before: Json, now: Json, missing: Json = None) -> Iterator[str]:
    if missing is _DEFAULT:  # so has each setting of a section that is missing
        before = {} if before is _DEFAULT and isinstance(now, Mapping) else before
        now = {} if now is _DEFAULT and isinstance(before, Mapping) else now
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in (*now, *(key for key in before if key not in now)):
            path = f"{name}.{key}" if name else key
            yield from _changed_settings(path, before.get(key, missing), now.get(key, missing), missing)
    elif before != now:
        yield f"{name} {_short(before)} → {_short(now)}"


def _short(value: Json) -> str:
    if value is _DEFAULT:
        return "its default"
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _pairs(
    before: Mapping[str, str] | None, now: Mapping[str, str] | None
) -> Iterator[tuple[str, str | None, str | None]]:
    old, new = before or {}, now or {}
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _verb(old: str | None, new: str | None, added: str, gone: str, edited: str) -> str:
    return added if old is None else gone if new is None else edited


def fingerprint(stage: Stage, settings: Settings, workspace: Workspace) -> str:
    """Hash all that shapes a stage's output; the same hash, the same bytes.

    Raises:
        WorkspaceError: A stage that it reads from hasn't finished.
    """
    return digest(origin(stage, settings, workspace))


def origin(stage: Stage, settings: Settings, workspace: Workspace) -> Json:
    """Return all that shapes a stage's output.

    Raises:
        WorkspaceError: A stage that it reads from hasn't finished.
    """
    return _origin(stage, settings, workspace, frozenset())


def trajectory_fingerprint(settings: Settings, workspace: Workspace) -> str:
    """Hash all that shapes the trajectory of the loop."""
    return digest(trajectory(settings, workspace))


def shaping_sections(settings: Settings) -> tuple[str, ...]:
    """Return the sections of the settings that shape the trajectory of the loop, by all the stages that it reads."""
    stages, waiting = [], [find_stage("prune")]
    gone_by = {"analyze": "curves", "profile": "profile"}
    unread = {need for need, measured in gone_by.items() if measured not in settings.goes_by}
    while waiting:
        stages.append(waiting.pop())
        waiting += [find_stage(need) for need in stages[-1].needs if need not in unread]
    return tuple(dict.fromkeys(section for stage in stages for section in stage.sections))


def trajectory(settings: Settings, workspace: Workspace) -> Json:
    """Return all that shapes the trajectory of the loop; what only says when to stop is left out."""
    return _origin(find_stage("prune"), settings, workspace, frozenset(STOP_ONLY))


def _origin(stage: Stage, settings: Settings, workspace: Workspace, spared: frozenset[str]) -> Json:
    return {
        "stage": stage.name,
        "settings": settings_of(stage, settings, spared),
        "reads": _read_by(stage, workspace),
        **executed(stage, settings),
    }


def origin_now(stage: Stage, before: Json, workspace: Workspace) -> Json:
    """Return all that shapes a stage's output now, by settings that are what they were.

    Args:
        stage: Which.
        before: What shaped it when these settings were read.
        workspace: Where.

    Raises:
        WorkspaceError: A stage that it reads from hasn't finished.
    """
    executed_now = _executed(stage, before["settings"], before["facts"])
    return {**before, "reads": _read_by(stage, workspace), **executed_now}


def _read_by(stage: Stage, workspace: Workspace) -> Json:
    return {need: dict(contents(workspace.folder(find_stage(need).folder), need)) for need in stage.needs}


def settings_of(stage: Stage, settings: Settings, spared: frozenset[str] = frozenset()) -> Json:
    """Return the settings that shape a stage's output."""
    dumped = settings.model_dump(mode="json", include=set(stage.sections))
    for section in dumped.values():
        for name in spared & section.keys():
            del section[name]
    return dumped


def executed(stage: Stage, settings: Settings) -> Json:
    """Return what DVC can't see by itself: modules, versions, files that the settings name, and facts."""
    facts = {fact: getattr(settings, fact) for fact in stage.facts}
    return _executed(stage, settings_of(stage, settings), facts)


def _executed(stage: Stage, settings: Json, facts: Json) -> Json:
    """As above, from the settings as JSON, so that nothing of theirs has to be imported."""
    strings = tuple(sorted(set(_strings(settings))))
    code = derive((code_of, stage.module, strings), lambda: code_of((stage.module,), strings))
    files = {
        f"{section}.{name}": settings[section][name]
        for section, name in _FILES
        if section in settings and settings[section].get(name) is not None and _is_here(name, settings[section][name])
    }
    return {
        "modules": dict(code.modules),
        "versions": derive((versions, code.installed), lambda: versions(code.installed)),
        "facts": facts,
        "files": {name: _hash_of(Path(path)) for name, path in files.items()},
    }


def _is_here(name: str, path: str) -> bool:
    """Whether a setting names something on this machine: a name on the hub doesn't, its revision says what it is."""
    return name != "from_pretrained" or Path(path).is_dir()


def files_of(path: Path) -> list[Path]:
    """Return a file that the settings name; of weights that are divided over several files, the index and all of them.

    Of a Hugging Face folder they are its files. What is missing is left out: whoever loads it says so; and a name on
    the hub names no file.
    """
    if path.is_dir():
        return sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
    if path.suffix != ".json":
        return [path]
    try:
        return [path, *(shard for shard in sorted(shards_of(path)) if shard.is_file())]
    except (JsonError, OSError):
        return [path]


def _hash_of(path: Path) -> str:
    first, *others = files_of(path)
    found = sha256(first.read_bytes())
    for other in others:
        found.update(sha256(other.read_bytes()).digest())
    return found.hexdigest()


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _strings(part)


def to_tell(stage: Stage, settings: Settings) -> Json:
    """Return what DVC is told: what a stage executes, and its settings, defaults included."""
    return {"settings": settings_of(stage, settings), **executed(stage, settings)}


def tell_dvc(settings: Settings, workspace: Workspace) -> bool:
    """Write what DVC is told about each stage, as files whose bytes it compares; return whether any is new."""
    found = {stage: to_tell(stage, settings) for stage in STAGES}
    new = [stage for stage in STAGES if told(stage, workspace) != found[stage]]
    for stage in new:
        write_json(code_file(stage, workspace), found[stage])
    return bool(new)


def is_told(stage: Stage, origin: Json, workspace: Workspace) -> bool:
    """Say whether DVC was told what a stage is made by."""
    found: bool = told(stage, workspace) == {name: origin[name] for name in origin if name not in ("stage", "reads")}
    return found


def told(stage: Stage, workspace: Workspace) -> Json:
    """Return what DVC was told about a stage; None if that isn't known."""
    try:
        return checked_json(code_file(stage, workspace).read_bytes(), dict[str, Any])
    except (OSError, JsonError):
        return None


def code_file(stage: Stage, workspace: Workspace) -> Path:
    """Return the file that says what a stage executes."""
    return workspace.folder("code") / f"{stage.name}.json"
