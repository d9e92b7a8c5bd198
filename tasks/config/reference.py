"""The reference of all settings: path, type, bounds, default and meaning, from the schema alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruning.errors import SettingsError, unknown_name
from tasks.config.schema import Settings
from tasks.config.types import KIND

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

_Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
        path: In `params.yaml`; `[]` stands for each entry of a list.
        kind: What it takes.
        bounds: Of a number, or of the length; empty where there are none.
        default: "default VALUE", or "required"; empty for a section.
        meaning: What it does.
        kinds: Of the section that it is in, those that have it; empty where every one does, or there is but one.
    """

    path: str
    kind: str
    bounds: str
    default: str
    meaning: str
    kinds: tuple[str, ...] = ()


def json_schema() -> dict[str, Any]:
    """Return the schema of `params.yaml` for editors: JSON Schema, draft 2020-12."""
    found = Settings.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "Secateur: params.yaml"}


def json_schema_text() -> str:
    """Return that schema as the text of a file."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def rows() -> list[Row]:
    """Return every setting, section by section."""
    schema = json_schema()
    return list(_rows("", [schema], schema["$defs"]))


def first_rows() -> list[Row]:
    """Return the settings that a first run needs."""
    return [row for row in rows() if row.path in FIRST]


def rows_below(path: str) -> list[Row]:
    """Return a setting with all that it holds.

    Raises:
        SettingsError: There is no setting of this path.
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


def _rows(path: str, sections: Sequence[_Schema], definitions: _Schema, kinds: tuple[str, ...] = ()) -> Iterator[Row]:
    """List the settings of a section; where it is one of several kinds, what they have in common once."""
    for name in dict.fromkeys(name for section in sections for name in section.get("properties", {})):
        place = f"{path}.{name}" if path else name
        if name == KIND and len(sections) > 1:
            yield _row_of_kinds(place, sections)
            continue
        holders = [section for section in sections if name in section["properties"]]
        for field in _differing(section["properties"][name] for section in holders):
            alike = [section for section in holders if section["properties"][name] == field]
            of = kinds if len(alike) == len(sections) else tuple(map(_kind_of, alike))
            inner = _inner(field, definitions)
            if not path and inner is not None:
                yield Row(place, "section", "", "", _meaning(field, _choices(field, definitions)))
            else:
                yield _row(place, field, name in alike[0].get("required", ()), definitions, of)
            if inner is not None:
                models, each = inner
                yield from _rows(f"{place}[]" if each else place, models, definitions, of)


def _differing(fields: Iterable[_Schema]) -> list[_Schema]:
    found: list[_Schema] = []
    for field in fields:
        if field not in found:
            found.append(field)
    return found


def _kind_of(section: _Schema) -> str:
    return str(section["properties"][KIND]["const"])


def _row_of_kinds(place: str, sections: Sequence[_Schema]) -> Row:
    """Describe the key that says of which kind a section is."""
    fields = {_kind_of(section): section["properties"][KIND] for section in sections}
    default = next((_short(field["default"]) for field in fields.values() if "default" in field), "none")
    meaning = " ".join(f"{kind}: {field['description']}" for kind, field in fields.items())
    return Row(place, ", ".join(fields), "", f"default {default}", " ".join(meaning.split()))


def _row(place: str, field: _Schema, required: bool, definitions: _Schema, of: tuple[str, ...]) -> Row:
    choices = _choices(field, definitions)
    kinds = dict.fromkeys(_kind(choice, definitions) for choice in choices)
    bounds = [text.format(_short(c[key])) for c in choices for key, text in _BOUNDS.items() if key in c]
    default = field.get("default", _NOTHING)
    said = "required" if required else f"default {'none' if default is _NOTHING else _short(default)}"
    return Row(place, " or ".join(kinds), ", ".join(dict.fromkeys(bounds)), said, _meaning(field, choices), of)


def _meaning(field: _Schema, choices: Sequence[_Schema]) -> str:
    said = field.get("description") or next((c["description"] for c in choices if c.get("description")), "")
    return " ".join(said.split("\n\n")[0].split())


def _choices(field: _Schema, definitions: _Schema) -> list[_Schema]:
    if "$ref" in field:
        return [definitions[field["$ref"].rpartition("/")[2]]]
    parts = (*field.get("anyOf", ()), *field.get("oneOf", ()))
    return [choice for part in parts for choice in _choices(part, definitions)] or [field]


def _kind(schema: _Schema, definitions: _Schema) -> str:
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


def _inner(field: _Schema, definitions: _Schema) -> tuple[list[_Schema], bool] | None:
    """Return the section that a setting is, or is a list of, in each of its kinds, and whether it is a list.

    None for a plain value.
    """
    choices = _choices(field, definitions)
    if sections := [choice for choice in choices if "properties" in choice]:
        return sections, False
    items = [item for choice in choices for item in _items(choice, definitions)]
    return (sections, True) if (sections := [item for item in items if "properties" in item]) else None


def _items(schema: _Schema, definitions: _Schema) -> list[_Schema]:
    return _choices(schema["items"], definitions) if isinstance(schema.get("items"), Mapping) else []


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
