"""Say what is wrong with settings: every fault at once, with its path and the nearest right name; and old names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pruning.errors import unknown_name

_MOST = 20  # faults
_LONGEST = 200  # characters of a value


def describe(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """List the faults of a validation, one line each, as `path: what was found, what was expected`."""
    faults = error.errors()
    found = [f"{_path(fault['loc'])}: {_text(fault, root)}" for fault in faults if not _follows(fault, faults)]
    return found if len(found) <= _MOST else [*found[:_MOST], f"and {len(found) - _MOST} more"]


def _follows(fault: ErrorDetails, faults: list[ErrorDetails]) -> bool:
    """Say whether a sequence is called too short only because its entries are faulty themselves."""
    inner = (other["loc"][: len(fault["loc"])] for other in faults if other is not fault)
    return fault["type"] == "too_short" and fault["loc"] in inner


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "settings"


def _text(fault: ErrorDetails, root: type[BaseModel]) -> str:
    kind, found, location = fault["type"], fault["input"], fault["loc"]
    if kind == "extra_forbidden":
        return unknown_name("setting", str(location[-1]), _known(root, location[:-1]))
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
    return f"found {_shown(found)}; {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _shown(found: Any) -> str:
    """Write a value, shortened; a number with too many digits for Python to write is one too."""
    try:
        text = repr(found)
    except ValueError:
        text = f"{type(found).__name__} of very many digits"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _known(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    model = _model_at(root, location)
    return list(model.model_fields) if model else []


def _literal_choices(root: type[BaseModel], location: tuple[int | str, ...]) -> tuple[Any, ...]:
    model = _model_at(root, location[:-1])
    field = model.model_fields.get(str(location[-1])) if model else None
    return get_args(field.annotation) if field else ()


def _model_at(root: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Follow a path of field names and indices to the model it ends in."""
    model = root
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _models_in(field.annotation) if field else []
        if not inner:
            return None
        model = inner[0]
    return model


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
    return [f"{path} is called {'.'.join([*path.split('.')[:-1], RENAMED[path]])} now" for path in _old(document)]


def with_new_names(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same settings under their names of today; a name that is given twice stays, and is refused later."""
    return _renamed(document, "")


def _old(document: Mapping[str, Any]) -> Iterator[str]:
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
