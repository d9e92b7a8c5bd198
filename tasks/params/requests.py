"""What may be asked of a deployment: a settings file of the repository, and a trial's few numbers. No code, no path.

Whoever fills in the form on Prefect's page chooses among what is in the repository; import strings come from its
files alone.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StrictFloat, StrictInt

from pruning.errors import SettingsError
from tasks.params.section import Section
from tasks.params.settings import Settings, load
from tasks.params.yaml_file import read_mapping, write_mapping
from tasks.workspace import DEFAULT_ROOT, Workspace

DEFAULT_PARAMS = Path("params.yaml")
TRIALS = Path("trials")

SettingsFile = Annotated[
    str,
    Field(
        max_length=200,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*\.ya?ml$",
        title="Settings file",
        description="A YAML file that Git tracks, by its path from the repository's folder.",
    ),
]
"""A settings file as a form may name it; whether it is one of the repository's is checked when the run begins."""


class Trial(Section):
    """Other settings for once: run in a workspace of its own, which DVC leaves alone."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        max_length=40,
        description="Its workspace is trials/NAME. Lower-case letters, digits, dashes.",
    )
    target: StrictFloat | None = Field(
        default=None, gt=0, lt=1, description="Share to be removed, of what prune.target names; empty: as in the file."
    )
    iterations: StrictInt | None = Field(
        default=None, ge=1, le=100, description="Number of goals on the way to the target."
    )
    max_accuracy_drop: StrictFloat | None = Field(
        default=None, ge=0, lt=1, description="What validation accuracy may lose, as a fraction."
    )
    max_attempts: StrictInt | None = Field(
        default=None, ge=1, le=1000, description="The loop ends after so many attempts."
    )
    seed: StrictInt | None = Field(default=None, ge=0, lt=2**31, description="Of every random choice.")


@dataclass(frozen=True)
class Request:
    """What a deployed run does.

    Attributes:
        params: Its settings file.
        workspace: Its workspace.
        commit: Whether finished stages go to DVC.
    """

    params: Path
    workspace: Path
    commit: bool


def accept(params: str, trial: Trial | None) -> Request:
    """Turn what was asked for into what is run; a trial's settings are written into its workspace first.

    Args:
        params: A settings file of the current folder's Git repository.
        trial: None for the run that DVC versions.

    Raises:
        SettingsError: The file is none of the repository's, DVC couldn't see it, or the trial's settings are wrong.
    """
    file = _tracked(Path(params))
    if trial is None:
        if file != DEFAULT_PARAMS:
            raise SettingsError(
                f"DVC sees {DEFAULT_PARAMS} alone, so a run by {file} can't be versioned; name a trial, which runs in "
                "a workspace of its own, or commit the change of settings on a branch"
            )
        return Request(file, DEFAULT_ROOT, commit=True)
    workspace = TRIALS / trial.name
    Workspace(workspace).refuse_links()
    written = workspace / DEFAULT_PARAMS
    write_mapping(written, _changed(file, trial))
    load(written)
    return Request(written, workspace, commit=False)


def _tracked(file: Path) -> Path:
    """Return a file's path from the current folder, if Git tracks it there."""
    here = Path.cwd().resolve()
    place = (here / file).resolve()
    if not place.is_relative_to(here):
        raise SettingsError(f"the settings file {file} lies outside the repository; name one that Git tracks")
    inside = place.relative_to(here)
    command = ["git", "ls-files", "--error-unmatch", "--", str(inside)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise SettingsError(f"the settings file {file} isn't in the Git repository of {here}; add and commit it")
    return inside


def _changed(file: Path, trial: Trial) -> dict[str, Any]:
    """Return a file's settings with a trial's numbers; its model is registered beside the one that is in use."""
    settings, changed = load(file), read_mapping(file)
    target = settings.prune.target
    if trial.target is not None:
        if len(target.kinds) > 1 or target.pattern is not None or not target.shares:
            raise SettingsError(
                f"trial.target is a share, but {file} has the target {' and '.join(target.kinds)}; leave it empty, or "
                "write another settings file"
            )
        changed["prune"]["target"] = {target.kinds[0]: trial.target}
    numbers = trial.model_dump(include={"iterations", "max_accuracy_drop", "max_attempts"}, exclude_none=True)
    changed["prune"].update(numbers)
    if trial.seed is not None:
        changed["run"] = {**changed.get("run", {}), "seed": trial.seed}
    return of_trials(changed, settings)


def of_trials(changed: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return settings by which a trial's model is registered beside the one that is in use."""
    name = f"{settings.tracking.model_name}-trials"
    return {**changed, "tracking": {**(changed.get("tracking") or {}), "model_name": name}}
