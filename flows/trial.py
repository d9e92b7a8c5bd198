"""A trial: other settings for once, in a workspace of its own that takes over what they don't shape."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pruning.errors import CheckpointError
from tasks.frontier import SHARED, take_over
from tasks.lock import locked
from tasks.params.overrides import write_trial
from tasks.params.settings import load
from tasks.workspace import DEFAULT_ROOT, Workspace

log = logging.getLogger("secateur")


def begin_trial(params: Path, changes: Sequence[str], workspace: Path) -> Path:
    """Write a trial's settings, and bring data, baseline, analysis and profile along where they are current.

    Args:
        params: The settings that are changed.
        changes: Texts `path=value`.
        workspace: Of the trial.

    Returns:
        The trial's settings file.

    Raises:
        SettingsError: A change is none that the settings accept.
        WorkspaceError: The workspace can't be used.
    """
    written = write_trial(params, changes, workspace)
    settings, own = load(written), Workspace(workspace)
    with locked(own):
        for stage in SHARED:
            try:
                take_over(stage, settings, Workspace(DEFAULT_ROOT), own)
            except CheckpointError as fault:
                log.warning("%s isn't taken over: %s", stage.name, fault)
    log.info("a trial, with settings of its own: %s", written)
    return written
