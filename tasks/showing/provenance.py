"""Where a result comes from: when, by which code, settings, data and machine. Nothing that a stage reads holds this."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from json import dumps

from pruning.timing.measuring import cpu_name
from tasks import export
from tasks.data import SPLITS, Description
from tasks.params.settings import Settings
from tasks.workspace import Json, Workspace

PACKAGES = ("torch", "onnxruntime", "mlflow", "prefect", "dvc")


def origin_of_report(settings: Settings, workspace: Workspace, data: Description) -> list[tuple[str, str]]:
    """Return what a reader has to know to make the result again: name and value.

    Args:
        settings: Of the run.
        workspace: Where it lies.
        data: What it learned from.
    """
    onnx_file = workspace.folder(export.FOLDER) / export.FILES["dense"]
    samples = ", ".join(f"{data.num_samples[name]:,} {name}" for name in SPLITS)
    return [
        ("written", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("code", commit()),
        ("seed", str(settings.run.seed)),
        ("data", f"{data.fingerprint[:16]} ({samples} samples)"),
        (
            "ONNX file",
            f"sha256 {sha256(onnx_file.read_bytes()).hexdigest()[:16]}; the registered version has it as a tag",
        ),
        ("machine", f"{cpu_name()}, {platform.system()}; device {settings.run.device}, threads {settings.run.threads}"),
        (
            "versions",
            ", ".join([f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in PACKAGES)]),
        ),
    ]


def commit() -> str:
    """Return Git's commit that is checked out, and whether files were edited since."""
    found, edited = (_git(*command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    if not found:
        return "not in a Git repository, or without a commit"
    count = len((edited or "").splitlines())
    return f"commit {found[:12]}" + (f", {count} files edited since" if count else "")


def flat(settings: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the settings by their paths."""
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{path}.")
        else:
            yield path, value if isinstance(value, str) else dumps(value)


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(["git", *command], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
