"""Read and write YAML files: plain values only, no key twice, of a size and depth that a person may have written."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pruning.errors import SettingsError
from pruning.io.files import replace_file
from tasks.file_cache import read_bytes

MOST_BYTES = 100_000
MOST_VALUES = 10_000
"""With those that aliases repeat."""
DEEPEST = 40
LONGEST_VALUE = 2_000

_KINDS = {yaml.ScalarNode: "text", yaml.SequenceNode: "list", yaml.MappingNode: "mapping"}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, made to refuse what it takes silently, or takes for ever over: keys twice, alias bombs."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._num_values = 0  # below the node that is being composed
        self._sizes: dict[int, int] = {}  # values of each node that is composed, itself among them

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        here = self.peek_event()  # type: ignore[no-untyped-call]
        alias = isinstance(here, yaml.AliasEvent)
        outer, self._num_values, self._depth = self._num_values, 1, self._depth + 1
        if self._depth > DEEPEST:
            raise _fault(f"nested deeper than {DEEPEST} levels", here)
        node = super().compose_node(parent, index)
        if alias and id(node) not in self._sizes:
            raise _fault(f"*{here.anchor} is an alias of what it is part of", here)
        size = self._sizes.setdefault(id(node), self._num_values)
        self._num_values, self._depth = outer + size, self._depth - 1
        if self._num_values > MOST_VALUES:
            raise _fault(f"with what aliases repeat, it holds more than {MOST_VALUES:,} values", here)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if len(node.value) > LONGEST_VALUE:
            raise _fault(f"a value has {len(node.value):,} characters; expected at most {LONGEST_VALUE:,}", node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _fault(f"a key is a {_KINDS[type(key_node)]}; expected a name", key_node)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _fault(f"the key {key!r} occurs twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # a date that is none, a number that is too long
            raise _fault(f"{node.value!r} can't be read ({error})", node) from error


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes texts that `_Loader` would take for numbers."""


_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")  # YAML 1.1 takes 5e-4, without a dot, for a text

for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, [*"-+0123456789"])


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a file that holds one mapping.

    Raises:
        SettingsError: The file isn't there, is too large, isn't YAML, has a key twice, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device might never end
            raise SettingsError(f"the settings file {path} is no file; name the one to use")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise SettingsError(f"the settings file {path} has {size:,} bytes; expected at most {MOST_BYTES:,}")
        text = read_bytes(path).decode("utf-8")
    except FileNotFoundError:
        raise SettingsError(
            f"there is no settings file {path}; name the one to use, or make one with `secateur init`"
        ) from None
    except OSError as error:
        raise SettingsError(f"the settings file {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"the settings file {path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    return parse_mapping(text, path)


def parse_mapping(text: str, path: Path) -> dict[str, Any]:
    """Read a text that holds one mapping.

    Args:
        text: Of the file.
        path: Of the file, for messages.

    Raises:
        SettingsError: It isn't YAML, has a key twice, or holds something else.
    """
    try:
        found = yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise SettingsError(f"the settings file {path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(found, dict):
        what = "is empty" if found is None else f"holds a {type(found).__name__}"
        raise SettingsError(f"the settings file {path} {what}; expected a mapping of sections")
    return found


def read_value(text: str, what: str) -> Any:
    """Read one value, as it would be written behind a key.

    Raises:
        SettingsError: The text isn't YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise SettingsError(f"{what}: {text!r} is not valid YAML: {_one_line(error)}") from error


def write_mapping(path: Path, value: dict[str, Any]) -> None:
    """Write a file that holds one mapping of plain values, whole or not at all."""
    replace_file(path, as_yaml(value).encode())


def as_yaml(value: dict[str, Any]) -> str:
    """Write a mapping of plain values as text."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _fault(problem: str, where: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, where.start_mark)


def _one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return f"line {mark.line + 1}: {error.problem}" if mark else error.problem
    return " ".join(str(error).split())
