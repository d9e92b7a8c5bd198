"""The reference of all settings: path, type, bounds, default and meaning, from the schema alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pruning.errors import SettingsError, unknown_name
from tasks.config.schema import Settings

FIRST = (
    *("run.device", "data.factory", "model.factory", "model.weights", "baseline.recipe", "prune.target"),
    *("prune.max_accuracy_drop", "tracking.model_name"),
)
"""What a first run needs: `secateur init` writes these."""

_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "maxLength": "at most {} characters",
}
_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
_LONGEST = 60
_NOTHING = object()


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        path: In `params.yaml`; `[]` stands for each entry of a list.
        kind: What it takes.
        bounds: Of a number, or of the length; empty where there are none.
        default: "default VALUE", or "required".
        meaning: What it does.
    """

    path: str
    kind: str
    bounds: str
    default: str
    meaning: str


def json_schema() -> dict[str, Any]:
    """Return the schema of `params.yaml` for editors: JSON Schema, draft 2020-12."""
    found = Settings.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "Secateur: params.yaml"}


def rows() -> list[Row]:
    """Return every setting, section by section."""
    schema = json_schema()
    return list(_rows("", schema, schema["$defs"]))


def first_rows() -> list[Row]:
    """Return the settings that a first run needs."""
    return [row for row in rows() if row.path in FIRST]


def rows_below(path: str) -> list[Row]:
    """Return a setting with all that it holds.

    Raises:
        SettingsError: There is none of this path.
    """
    found = [row for row in rows() if row.path == path or row.path.startswith((f"{path}.", f"{path}["))]
    if not found:
        raise SettingsError(_unknown(path))
    return found


def _unknown(path: str) -> str:
    known = {row.path for row in rows()}
    known |= {path.rpartition(".")[0] for path in known if "." in path}
    above = path.rpartition(".")[0]
    near = [name for name in known if name.rpartition(".")[0] == above]
    return unknown_name("setting", path, near or [name for name in known if "." not in name])


def _rows(path: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Row]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        place = f"{path}.{name}" if path else name
        inner = _inner(field, definitions)
        if path or inner is None:
            yield _row(place, field, name in required, definitions)
        if inner is not None:
            model, each = inner
            yield from _rows(f"{place}[]" if each else place, model, definitions)


def _row(place: str, field: Mapping[str, Any], required: bool, definitions: Mapping[str, Any]) -> Row:
    choices = _choices(field, definitions)
    kinds = dict.fromkeys(_kind(choice, definitions) for choice in choices)
    bounds = [text.format(_short(c[key])) for c in choices for key, text in _BOUNDS.items() if key in c]
    default = field.get("default", _NOTHING)
    said = "required" if required else f"default {'none' if default is _NOTHING else _short(default)}"
    meaning = field.get("description") or next((c["description"] for c in choices if c.get("description")), "")
    return Row(place, " or ".join(kinds), ", ".join(bounds), said, " ".join(meaning.split("\n\n")[0].split()))


def _choices(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "$ref" in field:
        return [definitions[field["$ref"].rpartition("/")[2]]]
    return [choice for part in field.get("anyOf", ()) for choice in _choices(part, definitions)] or [field]


def _kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array" and "items" in schema:
        items = " or ".join(
            dict.fromkeys(_kind(choice, definitions) for choice in _choices(schema["items"], definitions))
        )
        return f"list of {items}s" if items.isalpha() else f"list: {items}"
    return _KINDS.get(schema.get("type", ""), "value")


def _inner(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool] | None:
    """Return the section that a setting is, or is a list of, and whether it is a list; None for a plain value."""
    for choice in _choices(field, definitions):
        if "properties" in choice:
            return choice, False
        if isinstance(choice.get("items"), Mapping):
            for item in _choices(choice["items"], definitions):
                if "properties" in item:
                    return item, True
    return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
