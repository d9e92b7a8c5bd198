"""Bring the data set into the workspace, with its fingerprint."""

from __future__ import annotations

import logging

from tasks.config import import_strings
from tasks.config.schema import Settings
from tasks.data import FOLDER, as_splits, save_splits, task_of
from tasks.determinism import begin
from tasks.workspace import Workspace, writing

log = logging.getLogger("secateur")


def prepare(settings: Settings, workspace: Workspace) -> None:
    """Call the data set's function and write what it returns.

    Raises:
        SettingsError: The function can't be called or raised.
        DataError: It didn't return a data set.
    """
    begin(settings)
    reference = settings.data.factory
    splits = as_splits(import_strings.call(reference, settings.data.kwargs), reference, task_of(settings))
    with writing(workspace.folder(FOLDER)) as folder:
        description = save_splits(splits, folder)
    counts = ", ".join(f"{count:,} {name}" for name, count in description.num_samples.items())
    classes = f" in {len(description.classes)} classes" if description.classes else ""
    log.info("%s: %s samples%s", reference, counts, classes)
