"""What has changed since something was made, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Json = Any

_MOST_SHOWN = 8
_LONGEST = 60


def changes(before: Json, now: Json) -> str:
    """Say in words how two origins differ, in one line: the first of it."""
    found = list_changes(before, now)
    more = [f"and {len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
    return "; ".join(found[:_MOST_SHOWN] + more)


def list_changes(before: Json, now: Json) -> list[str]:
    """Say in words how two origins differ: every setting, module, version, file and input that changed."""
    found = [
        *_changed_settings("", before.get("settings"), now["settings"]),
        *_changed_settings("", before.get("facts"), now["facts"]),
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
    return found or ["what it was made by is written down in another form"]


def _changed_settings(name: str, before: Json, now: Json) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in (*now, *(key for key in before if key not in now)):
            yield from _changed_settings(f"{name}.{key}" if name else key, before.get(key), now.get(key))
    elif before != now:
        yield f"{name} {_short(before)} → {_short(now)}"


def _short(value: Json) -> str:
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
