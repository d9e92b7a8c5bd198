"""Other values of single settings for once, each named by its path: `prune.target.mac_reduction=0.6`."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pruning.errors import SettingsError
from tasks.params.requests import DEFAULT_PARAMS, TRIALS, of_trials
from tasks.params.settings import load
from tasks.params.yaml_file import read_mapping, read_value, write_mapping
from tasks.workspace import DEFAULT_ROOT, Workspace

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
    before = load(params)
    changed = of_trials(read_mapping(params), before)
    for change in changes:
        changed = overridden(changed, change)
    place = Workspace(workspace)
    place.refuse_links()
    written = workspace / DEFAULT_PARAMS
    earlier = written.read_bytes() if written.is_file() else None
    write_mapping(written, changed)
    try:
        load(written)
    except SettingsError as error:
        written.unlink()
        if earlier is not None:
            written.write_bytes(earlier)
        raise SettingsError(str(error).replace(str(written), f"{params}, changed by --set,", 1)) from error
    return written


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
