"""Read and write YAML files: plain values only, no key twice, of a size that a person may have written."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pruning.errors import SettingsError
from pruning.files.writing import replace_file

MOST_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would silently let the last of two equal keys win, made to refuse the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                where = f"line {key_node.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, f"{where}: the key {key!r} occurs twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a file that holds one mapping.

    Raises:
        SettingsError: The file isn't there, is too large, isn't YAML, has a key twice, or holds something else.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise SettingsError(f"the settings file {path} has {size:,} bytes; expected at most {MOST_BYTES:,}")
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # a SafeLoader
    except FileNotFoundError:
        raise SettingsError(f"there is no settings file {path}; give one with --params FILE") from None
    except OSError as error:
        raise SettingsError(f"the settings file {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"the settings file {path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    except yaml.YAMLError as error:
        raise SettingsError(f"the settings file {path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(found, dict):
        raise SettingsError(f"the settings file {path} holds a {type(found).__name__}; expected a mapping of sections")
    return found


def write_mapping(path: Path, value: dict[str, Any]) -> None:
    """Write a file that holds one mapping of plain values, whole or not at all."""
    replace_file(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode())


def _one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        return f"line {mark.line + 1}: {error.problem}" if mark else error.problem
    return " ".join(str(error).split())
