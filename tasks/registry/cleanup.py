"""Remove old trials, old MLflow runs and unused files of DVC's cache, but nothing that a registered version needs.

a version ─► its run in MLflow, with model and record
└► its record ─► the folders that DVC had of it ─► their files in DVC's cache
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.errors import WorkspaceError
from tasks.config.overrides import TRIALS
from tasks.config.schema import Settings
from tasks.frontier import FRONTIER
from tasks.loop.ledger import FOLDER as LOOP
from tasks.loop.ledger import aside
from tasks.registry.dvc_repo import DvcRepo
from tasks.registry.mlflow_client import absolute, all_pages, is_server, open_store, store_faults, without_secrets
from tasks.registry.mlflow_models import ONNX_HASH, RECORD_HASH, as_version, read_record
from tasks.workspace import Workspace, locked

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("secateur")


def remove_trials(before: datetime, *, dry_run: bool) -> list[Path]:
    """Remove and return the workspaces of trials and frontier targets in which nothing was written since a time.

    The frontier's table and pictures stay.

    Raises:
        WorkspaceError: One of them is in use; what was removed before it is gone.
    """
    removed = []
    for folder in sorted(
        path for place in (TRIALS, FRONTIER) for path in place.glob("*") if path.is_dir() and not path.is_symlink()
    ):
        if not _is_older(folder, before):
            continue
        removed.append(folder)
        if not dry_run:
            with locked(Workspace(folder)):
                shutil.rmtree(folder)
    return removed


def remove_set_aside(workspace: Workspace, before: datetime, *, dry_run: bool) -> list[Path]:
    """Remove and return the loops that were set aside and in which nothing was written since a time.

    Raises:
        WorkspaceError: The workspace is in use.
    """
    place = aside(workspace.folder(LOOP))
    found = [folder for folder in sorted(place.glob("*")) if not folder.is_symlink() and _is_older(folder, before)]
    if found and not dry_run:
        with locked(workspace):
            for folder in found:
                shutil.rmtree(folder)
    return found


def _is_older(folder: Path, before: datetime) -> bool:
    latest = max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])
    return datetime.fromtimestamp(latest, UTC) < before


def remove_runs(settings: Settings, before: datetime, *, dry_run: bool) -> list[str]:
    """Remove the experiment's runs that began before a time and that no version came from; return their ids.

    Their files and rows go with them, except on a server: there `mlflow gc` has to be run beside its database.

    Raises:
        WorkspaceError: The store can't be used.
    """
    uri = settings.tracking.uri
    with store_faults(settings):
        client = open_store(uri)
        experiment = client.get_experiment_by_name(settings.tracking.experiment)
        if experiment is None:
            return []
        needed = {version.run_id for version in _versions(settings)}
        text = f"attributes.start_time < {int(before.timestamp() * 1000)}"
        runs = all_pages(lambda token: client.search_runs([experiment.experiment_id], text, page_token=token))
        found = [run.info.run_id for run in runs if run.info.run_id not in needed]
        if dry_run or not found:
            return found
        for run_id in found:
            client.delete_run(run_id)
    if not is_server(uri):
        command = [sys.executable, "-m", "mlflow", "gc", "--run-ids", ",".join(found)]
        # Not on the command line, which every user of the machine can read: it may hold a password.
        environment = {**os.environ, "MLFLOW_TRACKING_URI": absolute(uri)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            said = without_secrets(said, uri)
            raise WorkspaceError(f"`mlflow gc` failed and said: {said}; the runs are hidden, their files stay")
    return found


def remove_unneeded_objects(settings: Settings, *, dry_run: bool) -> int:
    """Remove from DVC's cache what no commit, no version and not the folder itself needs; return the number of files.

    Raises:
        WorkspaceError: What a version needs isn't known; then nothing is removed.
    """
    return DvcRepo().remove_all_but(_outputs_of_versions(settings), dry_run=dry_run)


def _outputs_of_versions(settings: Settings) -> frozenset[str]:
    """Return the md5 of every output in DVC that belongs to a version of any model in the store."""
    needed: set[str] = set()
    with store_faults(settings):
        for version in _versions(settings):
            if ONNX_HASH not in version.tags:
                continue  # of another project
            if RECORD_HASH not in version.tags:
                raise WorkspaceError(
                    f"{version.name}, version {version.version}, was registered without a record, so what it needs "
                    "isn't known, and DVC's cache is left as it is; delete that version, or use `dvc gc` by hand"
                )
            needed.update(read_record(settings, as_version(version)).outputs.values())
    return frozenset(needed)


def _versions(settings: Settings) -> list[ModelVersion]:
    """Return the versions of all models in the store, page by page."""
    client = open_store(settings.tracking.uri)
    return all_pages(lambda token: client.search_model_versions("", page_token=token))
