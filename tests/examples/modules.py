"""Modules of an example, imported from its folder as its user does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from tasks.environment import REPOSITORY


@contextmanager
def modules_of(example: str, *names: str) -> Iterator[dict[str, ModuleType]]:
    """Import modules of a folder of `examples/`, and forget them at the end: examples share names."""
    folder = str(REPOSITORY / "examples" / example)
    sys.path.insert(0, folder)
    try:
        yield {name: import_module(name) for name in names}
    finally:
        sys.path.remove(folder)
        for name in names:
            del sys.modules[name]
