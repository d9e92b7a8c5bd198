"""Other settings for once: of a trial, each by its path; and what may be asked of a deployment. No code, no path.

Whoever fills in the form on Prefect's page chooses among what is in the repository; import strings come from its
files alone.
"""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import Field, StrictFloat, StrictInt

from pruning.errors import SettingsError
from tasks.config.schema import Settings, load
from tasks.config.types import Section
from tasks.config.yaml_io import read_mapping, read_value, write_mapping
from tasks.workspace import DEFAULT_PARAMS, DEFAULT_ROOT, Workspace

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


_LONGEST_NAME = 60


def trial_workspace(changes: Sequence[str]) -> Path:
    """Return a trial's workspace, named by its changes: the same changes, the same workspace."""
    words = [f"{path.rpartition('.')[2]}-{value}" for path, _, value in (change.partition("=") for change in changes)]
    name = re.sub(r"[^\w.-]+", "-", "_".join(words)).strip("-._").lower()
    digest = sha256("\n".join(sorted(changes)).encode()).hexdigest()[:8]
    return TRIALS / (name if 0 < len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{digest}".lstrip("-"))


def write_trial(params: Path, changes: Sequence[str], workspace: Path) -> Path:
    """Write the settings of a trial into its workspace, and return the file.

    Its model is registered beside the one that is in use, unless `tracking.model_name` is among the changes.

    Args:
        params: The settings that are changed; the file stays as it is.
        changes: Texts `path=value`; the value is read as YAML.
        workspace: Of the trial alone.

    Raises:
        SettingsError: A change is malformed, names no setting, or gives a value that isn't accepted; or the workspace
            is the one that DVC versions.
    """
    if workspace == DEFAULT_ROOT:
        raise SettingsError(
            f"{DEFAULT_ROOT}/ holds what {DEFAULT_PARAMS} asks for; a trial needs a workspace of its own: leave out "
            "--workspace, or give another"
        )
    Workspace(workspace).refuse_links()
    with draft_trial(params, changes) as draft:  # what isn't accepted leaves no trace in the workspace
        changed = read_mapping(draft)
    written = workspace / DEFAULT_PARAMS
    write_mapping(written, changed)
    return written


@contextmanager
def draft_trial(params: Path, changes: Sequence[str]) -> Iterator[Path]:
    """Write the settings of a trial into a folder that is gone after the block, and give the file.

    Raises:
        SettingsError: A change is malformed, names no setting, or gives a value that isn't accepted.
    """
    changed = of_trials(read_mapping(params), load(params))
    for change in changes:
        changed = overridden(changed, change)
    with TemporaryDirectory() as folder:
        draft = Path(folder) / DEFAULT_PARAMS
        write_mapping(draft, changed)
        try:
            load(draft)
        except SettingsError as error:
            raise SettingsError(str(error).replace(str(draft), f"{params}, changed by --set,", 1)) from error
        yield draft


def overridden(settings: dict[str, Any], change: str) -> dict[str, Any]:
    """Return settings with one value changed; what is on the way to it is made where it isn't there.

    Args:
        settings: As a settings file has them.
        change: A text `path=value`; a number in the path counts the entries of a list from 0.

    Raises:
        SettingsError: It is malformed, or leads through something that is neither mapping nor list.
    """
    path, separator, text = change.partition("=")
    parts = path.split(".")
    if not separator or not all(parts):
        raise SettingsError(
            f"--set {change!r} is no PATH=VALUE; expected a setting by its path, such as prune.target.mac_reduction=0.6"
        )
    result = copy.deepcopy(settings)
    inner: Any = result
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(inner, dict):
            if last:
                inner[part] = read_value(text, f"--set {path}")
            else:
                if inner.get(part) is None:
                    inner[part] = {}
                inner = inner[part]
        elif isinstance(inner, list) and part.isdecimal() and int(part) < len(inner):
            if last:
                inner[int(part)] = read_value(text, f"--set {path}")
            else:
                inner = inner[int(part)]
        else:
            above = ".".join(parts[:depth])
            what = f"a list of {len(inner)}" if isinstance(inner, list) else f"{inner!r}"
            raise SettingsError(f"--set {path}: {above} is {what}, which has no {part!r}; see `secateur params --all`")
    return result
