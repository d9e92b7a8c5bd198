"""Where Secateur's own packages are found, and which extra brings an optional one.

The current folder belongs to the user and may hold folders called `tasks/` or `flows/` too. The command `secateur`
needs its own; `import secateur` alone leaves Python's search for modules as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("secateur", "flows", "tasks", "pruning", "zoo")
HOME = Path(__file__).resolve().parent.parent
EXTRAS = {
    "pipeline": (
        *("dvc", "dvc_data", "fastapi", "matplotlib", "mlflow", "onnx", "onnxruntime", "onnxscript", "PIL", "prefect"),
        *("sklearn", "sqlalchemy"),
    ),
    "hf": ("transformers", "huggingface_hub", "tokenizers"),
    "postgresql": ("psycopg",),
}
"""Extra -> the packages that it installs, by their import names."""


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


def advice(missing: str | None) -> str | None:
    """Say how to install a package; None if it belongs to no extra."""
    package = (missing or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"needs {package}, which isn't installed; install it with: pip install 'secateur[{extra}]'"
    return None


@contextmanager
def named(what: str) -> Iterator[None]:
    """Make the error about a missing package say how to install it.

    Args:
        what: Needs it.

    Raises:
        ModuleNotFoundError: With the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (text := advice(error.name)) is None:
            raise
        raise ModuleNotFoundError(f"{what} {text}", name=error.name) from error
