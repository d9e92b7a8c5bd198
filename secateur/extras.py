"""What an optional package that isn't installed belongs to, and the line that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "pipeline": (
        *("dvc", "dvc_data", "fastapi", "matplotlib", "mlflow", "onnx", "onnxruntime", "onnxscript", "PIL", "prefect"),
        *("sklearn", "sqlalchemy"),
    ),
    "postgresql": ("psycopg",),
}
"""Extra -> the packages that it brings along, by the names that they are imported by."""


def advice(missing: str | None) -> str | None:
    """Say how a package is installed; None where it belongs to no extra."""
    package = (missing or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"needs {package}, which isn't installed; install it with: pip install 'secateur[{extra}]'"
    return None


@contextmanager
def named(what: str) -> Iterator[None]:
    """Let the error about a package that isn't installed say how to install it.

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
