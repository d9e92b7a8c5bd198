"""What is old goes; what a version in the registry needs stays, though no commit names it."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pruning.errors import WorkspaceError
from tasks.registry import cleanup, mlflow_models, trust
from tasks.registry.dvc_repo import DvcRepo, outputs
from tasks.registry.mlflow_client import open_store
from tasks.registry.mlflow_runs import FINGERPRINT
from tasks.workspace import Workspace
from tests.tasks.registry.conftest import MakeRepository

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=1)


def make_trial(name: str, age_days: float, place: str = "trials") -> Path:
    folder = Path(place) / name
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text("{}", encoding="utf-8")
    then = (NOW - timedelta(days=age_days)).timestamp()
    for path in (folder / "params.yaml", folder):
        os.utime(path, (then, then))
    return folder


def test_old_trials_go_and_young_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old, young = make_trial("old", 31), make_trial("young", 1)
    before = NOW - timedelta(days=30)
    target, page = make_trial("mac_reduction-0.5", 31, "frontier"), Path("frontier/frontier.html")
    page.write_text("", encoding="utf-8")
    assert cleanup.remove_trials(before, dry_run=True) == [target, old]
    assert old.exists()
    assert cleanup.remove_trials(before, dry_run=False) == [target, old]
    assert not old.exists()
    assert not target.exists()
    assert young.exists()
    assert page.exists()


def test_old_loops_that_stepped_aside_go_and_young_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = make_trial("0123", 31, "artifacts/.iterations.aside")
    young = make_trial("4567", 1, "artifacts/.iterations.aside")
    workspace, before = Workspace(Path("artifacts")), NOW - timedelta(days=30)
    assert cleanup.remove_set_aside(workspace, before, dry_run=True) == [old]
    assert old.exists()
    assert cleanup.remove_set_aside(workspace, before, dry_run=False) == [old]
    assert not old.exists()
    assert young.exists()


@pytest.mark.slow
def test_run_without_a_version_goes_with_its_files_and_one_with_a_version_stays(shop: Any) -> None:
    settings = shop.settings
    client = open_store(settings.tracking.uri)
    kept = mlflow_models.find(settings, alias="candidate").run_id
    experiment = client.get_experiment_by_name(settings.tracking.experiment)
    assert experiment
    run = client.create_run(experiment.experiment_id, tags={FINGERPRINT: "stopped"})
    client.log_artifact(run.info.run_id, "params.yaml")
    assert run.info.artifact_uri
    files = Path(run.info.artifact_uri.removeprefix("file://"))
    assert cleanup.remove_runs(settings, NOW - timedelta(days=1), dry_run=False) == []
    assert cleanup.remove_runs(settings, LATER, dry_run=True) == [run.info.run_id]
    assert (files / "params.yaml").exists()
    assert cleanup.remove_runs(settings, LATER, dry_run=False) == [run.info.run_id]
    assert not (files / "params.yaml").exists()
    assert [found.info.run_id for found in client.search_runs([experiment.experiment_id])] == [kept]
    assert len(trust.answers_of(settings, mlflow_models.find(settings, number="1"), registry_inputs(shop))) == 2


def registry_inputs(shop: Any) -> Any:
    from tasks.data import read_inputs

    return read_inputs(shop.settings, shop.workspace, "validation").first(2).inputs.numpy()


@pytest.fixture
def repository(make_repository: MakeRepository) -> Path:
    return make_repository("stages: {first: {cmd: 'true', outs: [out]}}\n")


def write(text: str) -> str:
    """Write the stage's output, commit it to DVC, and return the md5 of its folder."""
    folder = Path("out")
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text(text, encoding="utf-8")
    DvcRepo().commit("first")
    return outputs()["out"]


def test_a_version_needs_files_too_and_a_damaged_list_is_said(make_repository: MakeRepository) -> None:
    make_repository("stages: {first: {cmd: 'true', outs: [out]}, second: {cmd: 'true', outs: [note]}}\n")
    folder = write("registered")
    Path("note").write_text("of this version", encoding="utf-8")
    DvcRepo().commit("second")
    note = outputs()["note"]
    Path("note").write_text("of the next", encoding="utf-8")
    DvcRepo().commit("second")
    write("now")
    assert cached() == 6
    assert DvcRepo().remove_all_but([folder, note], dry_run=False) == 0
    assert DvcRepo().remove_all_but([folder], dry_run=False) == 1
    (damaged,) = (path for path in Path(".dvc/cache/files").rglob("*") if folder == path.parent.name + path.name)
    damaged.chmod(0o600)
    damaged.write_text("{", encoding="utf-8")
    for action in (lambda: DvcRepo().remove_all_but([folder], dry_run=False), lambda: DvcRepo().bring(folder, Path())):
        with pytest.raises(WorkspaceError, match=f"{damaged.name}, a list of files in DVC's cache, is damaged"):
            action()
    assert cached() == 5


def cached() -> int:
    return sum(path.is_file() for path in Path(".dvc/cache/files").rglob("*"))


def test_cache_keeps_what_a_commit_a_version_or_the_folder_needs(repository: Path) -> None:
    write("committed")
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one"], check=True)
    registered = write("registered, its lock never committed")
    write("needed by nothing")
    write("now")
    assert cached() == 8
    assert DvcRepo().remove_all_but([registered], dry_run=True) == 2
    assert cached() == 8
    assert DvcRepo().remove_all_but([registered], dry_run=False) == 2
    assert DvcRepo().remove_all_but([registered], dry_run=False) == 0
    DvcRepo().bring(registered, Path("back"))
    assert Path("back/file").read_text(encoding="utf-8") == "registered, its lock never committed"
    assert DvcRepo().changed() == frozenset()


def test_what_versions_need_is_read_from_their_records(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[frozenset[str]] = []

    class Cache:
        def remove_all_but(self, folders: frozenset[str], *, dry_run: bool) -> int:
            asked.append(folders)
            return 0

    monkeypatch.setattr(cleanup, "DvcRepo", Cache)
    cleanup.remove_unneeded_objects(shop.settings, dry_run=False)
    assert asked == [frozenset()]  # the small project was never committed to DVC
    open_store(shop.settings.tracking.uri).delete_model_version_tag("small", "1", mlflow_models.RECORD_HASH)
    with pytest.raises(WorkspaceError, match="small, version 1, was registered without a record"):
        cleanup.remove_unneeded_objects(shop.settings, dry_run=False)
    assert len(asked) == 1


def test_trial_that_runs_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_trial("busy", 31)
    with FileLock(folder.absolute() / ".lock"), pytest.raises(WorkspaceError, match="in use by another run"):
        cleanup.remove_trials(LATER, dry_run=False)
    assert folder.exists()
