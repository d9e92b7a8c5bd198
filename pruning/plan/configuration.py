"""The numbers of a configuration: found by their keys, changed, and what steps of pruning make of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from pruning.errors import PlanError
from pruning.graph.groups import CommonSize

Keys = tuple[str | int, ...]
"""Keys that lead to a number of a configuration."""

Build = Callable[[Mapping[str, Any], bool], nn.Module]
"""(configuration, whether without values, on the meta device) -> the model that the class builds from it."""


@dataclass(frozen=True)
class ConfigField(CommonSize):
    """Numbers of a configuration that set the sizes of groups, and nothing else.

    Attributes:
        name: the number's name; several joined by " and ".
        units: group -> channels that it loses in one step.
        steps: keys of each number -> by how much it falls in one step.
    """

    steps: Mapping[Keys, int]


def name_of(path: Keys) -> str:
    """Return the name of a number, as in `text_config.hidden_size`."""
    return ".".join(map(str, path))


def numbers_after(config: Mapping[str, Any], counts: Iterable[tuple[ConfigField, int]]) -> dict[Keys, int]:
    """Return the numbers of a configuration that change where fields take some steps.

    A number that several fields change is a product, as the number of heads is one of groups and heads in a group: each
    takes away its share.

    Raises:
        PlanError: a number would not be whole, or below 1.
    """
    found: dict[Keys, Fraction] = {}
    for field, count in counts:
        for path, step in field.steps.items():
            value = value_at(config, path)
            found[path] = found.get(path, Fraction(value)) * Fraction(value - step * count, value)
    if wrong := [path for path, value in found.items() if value.denominator > 1 or value < 1]:
        raise PlanError(f"{name_of(wrong[0])} would be {found[wrong[0]]}")
    return {path: int(value) for path, value in found.items()}


def numbers_in(config: Any, path: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """Yield every integer above 1 of a configuration, with the keys that lead to it."""
    if isinstance(config, Mapping):
        for key, inner in config.items():
            yield from numbers_in(inner, (*path, key))
    elif isinstance(config, list | tuple):
        for index, inner in enumerate(config):
            yield from numbers_in(inner, (*path, index))
    elif type(config) is int and config > 1:
        yield path, config


def nulls_in(config: Any, path: Keys = ()) -> Iterator[Keys]:
    """Yield the keys that lead to null in the mappings of a configuration."""
    for key, inner in config.items():
        if inner is None:
            yield (*path, key)
        elif isinstance(inner, Mapping):
            yield from nulls_in(inner, (*path, key))


def value_at(config: Any, path: Keys) -> int:
    """Return the number that some keys lead to."""
    for key in path:
        config = config[key]
    return int(config)


def changed(config: Mapping[str, Any], changes: Mapping[Keys, int]) -> dict[str, Any]:
    """Return a copy of a configuration with other numbers."""
    found: Any = copy.deepcopy(dict(config))
    for path, value in changes.items():
        inner = found
        for key in path[:-1]:
            inner[key] = list(inner[key]) if isinstance(inner[key], tuple) else inner[key]
            inner = inner[key]
        inner[path[-1]] = value
    result: dict[str, Any] = found
    return result
