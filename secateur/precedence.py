"""Find Secateur's packages beside this one, whatever else is on the path.

The current folder belongs to the user and may hold folders called `tasks/` or `flows/` too. The command `secateur`
needs its own; `import secateur` alone leaves Python's search for modules as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("secateur", "flows", "tasks", "pruning", "zoo")
HOME = Path(__file__).resolve().parent.parent


class _OwnPackages(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return PathFinder.find_spec(fullname, [str(HOME)]) if fullname in PACKAGES else None


def find_own_packages_first() -> None:
    """Make Python find Secateur's packages before the user's folders of the same names."""
    if not any(isinstance(finder, _OwnPackages) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OwnPackages())
