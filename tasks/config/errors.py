"""Say what is wrong with settings: every fault at once, with its path and the nearest right name; and old names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pruning.errors import unknown_name
from tasks.config.types import KIND

_MOST = 20  # faults
_LONGEST = 200  # characters of a value


def describe(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """List the faults of a validation, one line each, as `path: what was found, what was expected`."""
    faults = error.errors()
    found = [_line(fault, root) for fault in faults if not _follows(fault, faults)]
    return found if len(found) <= _MOST else [*found[:_MOST], f"and {len(found) - _MOST} more"]


def _follows(fault: ErrorDetails, faults: list[ErrorDetails]) -> bool:
    """Say whether a sequence is called too short only because its entries are faulty themselves."""
    inner = (other["loc"][: len(fault["loc"])] for other in faults if other is not fault)
    return fault["type"] == "too_short" and fault["loc"] in inner


def _line(fault: ErrorDetails, root: type[BaseModel]) -> str:
    path, text = _path(_at(root, fault["loc"]).keys), _text(fault, root)
    if not fault["loc"] and fault["type"] == "value_error":  # about several sections, which the text names
        return text
    if fault["type"] == "union_tag_invalid":
        path += f".{KIND}"
    return f"{path} {text}" if text.startswith("is ") else f"{path}: {text}"


def _path(keys: Sequence[int | str]) -> str:
    text = ""
    for part in keys:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "settings"


def _text(fault: ErrorDetails, root: type[BaseModel]) -> str:
    kind, found, location = fault["type"], fault["input"], fault["loc"]
    if kind == "extra_forbidden":
        return _unknown(_at(root, location[:-1]), str(location[-1]))
    if kind == "union_tag_invalid":
        return unknown_name("choice", str(fault["ctx"]["tag"]), [_kind(model) for model in _at(root, location).models])
    if kind == "missing":
        return "is missing"
    if kind == "invalid_key":
        return f"the key {location[-1]!r} is no text; expected a name"
    if kind == "literal_error":
        choices = [str(choice) for choice in _literal_choices(root, location)]
        if choices:
            return unknown_name("choice", str(found), choices)
    if kind == "value_error":
        text = str(fault.get("ctx", {}).get("error", fault["msg"]))
        return text if isinstance(found, Mapping) or repr(found) in text else f"found {_shown(found)}: {text}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"found {_shown(found)}; expected a mapping of settings, such as {{name: value}}"
    return f"found {_shown(found)}; {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _shown(found: Any) -> str:
    """Write a value, shortened; a number with too many digits for Python to write is one too."""
    try:
        text = repr(found)
    except ValueError:
        text = f"{type(found).__name__} of very many digits"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _unknown(place: _Place, key: str) -> str:
    """Say that a section has no such key, or that it belongs to another kind of this section."""
    known = [name for model in place.models[:1] for name in model.model_fields]
    owners = [_kind(model) for model in place.others if key in model.model_fields]
    if not owners:
        return unknown_name("setting", key, known)
    listed = f"kinds {', '.join(owners[:-1])} and {owners[-1]}" if len(owners) > 1 else f"kind {owners[0]}"
    return f"is a key of {listed}; {KIND} is {_kind(place.models[0])}: remove it"


def _literal_choices(root: type[BaseModel], location: tuple[int | str, ...]) -> tuple[Any, ...]:
    models = _at(root, location[:-1]).models
    field = models[0].model_fields.get(str(location[-1])) if models else None
    return get_args(field.annotation) if field else ()


@dataclass(frozen=True)
class _Place:
    """Where a location of pydantic's leads.

    Attributes:
        keys: As the file has them: pydantic names the kind too, where a section is a union.
        models: What the section may be: of one kind where the location names it; empty where it is no section.
        others: The section's other kinds, where the location names one.
    """

    keys: tuple[int | str, ...]
    models: tuple[type[BaseModel], ...]
    others: tuple[type[BaseModel], ...] = ()


def _at(root: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    place = _Place((), (root,))
    for part in location:
        if len(place.models) > 1:
            of_kind = tuple(model for model in place.models if _kind(model) == part)
            place = _Place(place.keys, of_kind, tuple(model for model in place.models if model not in of_kind))
        elif isinstance(part, int):
            place = _Place((*place.keys, part), place.models)
        else:
            field = place.models[0].model_fields.get(part) if place.models else None
            place = _Place((*place.keys, part), tuple(_models_in(field.annotation)) if field else ())
    return place


def _kind(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields[KIND].annotation)[0])


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


RENAMED = {
    "tidy": "cleanup",
    "data.arguments": "kwargs",
    "model.arguments": "kwargs",
    "training.augment.arguments": "kwargs",
    "analyze.fraction": "sample_fraction",
    "prune.keep_at_least": "min_channels",
    "prune.allocation.by": "strategy",
    "promote.max_more_macs": "max_macs_increase",
    "promote.max_more_size": "max_size_increase",
    "promote.max_more_latency": "max_latency_increase",
}
"""Path of a setting as it was -> its name now, in the same section."""


def old_names(document: Mapping[str, Any]) -> list[str]:
    """Say of each setting with an old name what it is called now."""
    return [f"{path} is called {new_path(path)} now" for path in old_paths(document)]


def new_path(path: str) -> str:
    """Return the path of today of a setting with an old name."""
    return ".".join([*path.split(".")[:-1], RENAMED[path]])


def with_new_names(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same settings under their names of today; a name that is given twice stays, and is refused later."""
    return _renamed(document, "")


def old_paths(document: Mapping[str, Any]) -> Iterator[str]:
    """List the settings with an old name."""
    for path in RENAMED:
        *sections, name = path.split(".")
        found: Any = document
        for section in sections:
            found = found.get(section) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and name in found:
            yield path


def _renamed(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found = {}
    for name, value in section.items():
        path = f"{prefix}{name}"
        new = RENAMED.get(path, name)
        found[name if new in section else new] = (
            _renamed(value, f"{path}.") if isinstance(value, Mapping) and isinstance(name, str) else value
        )
    return found
