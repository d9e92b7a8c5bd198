"""Bring the data set into the workspace, with its fingerprint: all of it below a bound, else what is known of it."""

from __future__ import annotations

import logging

from pruning.containers import take
from tasks.config.schema import Settings
from tasks.data import (
    FOLDER,
    Description,
    describe_sets,
    identity_of,
    open_sets,
    save_description,
    save_splits,
    task_of,
    with_shapes,
)
from tasks.data_factory import check_targets
from tasks.data_sets import DataSets, SizesError
from tasks.determinism import begin
from tasks.workspace import Workspace, writing
from zoo.datasets.splits import Splits

log = logging.getLogger("secateur")


def prepare(settings: Settings, workspace: Workspace) -> None:
    """Call the data set's function, and write what it returns, or what tells it from others.

    Raises:
        SettingsError: The function can't be called or raised.
        DataError: It didn't return a data set.
    """
    begin(settings)
    reference = settings.data.factory
    found = open_sets(settings)
    sets = found if isinstance(found, DataSets) else None
    if isinstance(found, DataSets) and is_copied(found, settings):
        try:
            found = found.read()
        except SizesError:  # from batch to batch, as of texts that are padded to the longest: batches are read then
            log.info("%s: sizes differ from batch to batch, so that batches can't be copied as one tensor", reference)
    if isinstance(found, Splits):
        description = _copy(found, sets, settings, workspace)
    else:
        description = _describe(found, settings, workspace)
    counts = ", ".join(f"{count:,} {name}" for name, count in description.num_samples.items())
    classes = f" in {len(description.classes)} classes" if description.classes else ""
    log.info("%s: %s samples%s", reference, counts, classes)
    if not description.copied:
        log.info(
            "%s: none is copied: every stage opens the data set again; the same data are told by %s",
            *(
                reference,
                {"content": "their content", "files": "their files", "declared": "what it declares"}[
                    description.identity
                ],
            ),
        )


def is_copied(sets: DataSets, settings: Settings) -> bool:
    """Say whether all samples go into the workspace."""
    chosen = settings.data
    if chosen.identity not in ("auto", "content") or sets.num_bytes >= chosen.copy_below_bytes:
        return False
    return not sets.varies("train")


def _copy(splits: Splits, sets: DataSets | None, settings: Settings, workspace: Workspace) -> Description:
    check_targets(splits, settings.data.factory, task_of(settings))
    with writing(workspace.folder(FOLDER)) as folder:
        return save_splits(splits, folder, sets)


def _describe(sets: DataSets, settings: Settings, workspace: Workspace) -> Description:
    example = take(sets.first["validation"].inputs, slice(0, 1))
    checking = with_shapes(sets)
    description = describe_sets(checking, identity_of(sets, settings), workspace)
    kept = checking.calibration()
    with writing(workspace.folder(FOLDER)) as folder:
        save_description(description, example, folder, kept)
    return description
