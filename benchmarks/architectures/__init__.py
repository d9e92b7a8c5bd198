"""The architectures that the engine is tried on; none of them is known to it.

To add one: a row in the table of its package.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from benchmarks.architectures import from_timm, from_torchvision, from_transformers, own
from benchmarks.architectures import large as large_ones
from benchmarks.architectures.architecture import Architecture


def find_architectures(pattern: str = "*", *, large: bool = False) -> list[Architecture]:
    """Return the architectures, or the large ones, whose names match a shell pattern or contain it."""
    tables = (large_ones,) if large else (from_torchvision, from_timm, from_transformers, own)
    every = [one for table in tables for one in table.architectures()]
    return [one for one in every if fnmatchcase(one.name, pattern) or pattern in one.name]


__all__ = ["Architecture", "find_architectures"]
