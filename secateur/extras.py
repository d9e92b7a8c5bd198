"""Which extra an optional package belongs to, and the line that installs it."""

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
"""Extra -> the packages that it installs, by their import names."""


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
