"""Versions of the installed packages that shape what a stage computes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, version

_ONLY_SHOW_OR_STORE = {"filelock", "psutil", "pydantic", "safetensors", "tqdm", "yaml"}
"""What they do to a result can be read again by any version."""

_BRING_ALONG = {"torch": ("numpy",), "onnx": ("onnxscript", "onnx_ir"), "sklearn": ("numpy", "scipy")}
"""What others compute with, though no import statement of a stage's says so."""

_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages, by the names that they are imported by, and Python's.

    One that isn't installed has none: "not installed".
    """
    wanted = set(names) | {also for name in names for also in _BRING_ALONG.get(name, ())}
    found = {name: _version(name) for name in sorted(wanted - _ONLY_SHOW_OR_STORE)}
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **found}


def _version(name: str) -> str:
    try:
        return version(_DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        owners = sorted(packages_distributions().get(name, ()))
        return ", ".join(f"{owner} {version(owner)}" for owner in owners) or "not installed"
