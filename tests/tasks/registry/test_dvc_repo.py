"""DVC as it is, in a temporary repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pruning.errors import WorkspaceError
from tasks.registry.dvc_repo import DvcRepo, inside_dvc
from tests.tasks.registry.conftest import MakeRepository

STAGES = """
stages:
  first:
    cmd: python write.py
    params: [one]
    outs: [out]
  second:
    cmd: python other.py
    deps: [out]
    outs: [end]
"""


@pytest.fixture
def repository(make_repository: MakeRepository) -> Path:
    folder = make_repository(STAGES)
    (folder / "params.yaml").write_text("one: {a: 1}\n", encoding="utf-8")
    return folder


def write(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text(text, encoding="utf-8")


def test_stage_is_changed_until_it_is_committed_and_again_when_its_settings_change(repository: Path) -> None:
    versions = DvcRepo()
    assert versions.changed() == {"first", "second"}
    write(repository / "out", "1")
    versions.commit("first")
    assert versions.changed() == {"second"}
    write(repository / "end", "1")
    versions.commit("second")
    assert versions.changed() == frozenset()
    (repository / "params.yaml").write_text("one: {a: 2}\n", encoding="utf-8")
    assert versions.changed() == {"first"}


def test_dvc_writes_nothing_to_the_terminal(repository: Path) -> None:
    """In a process of its own: importing DVC turns its messages on."""
    write(repository / "out", "1")
    code = (
        "from tasks.registry.dvc_repo import DvcRepo; r = DvcRepo(); r.commit('first'); r.changed(); r.commit('first')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_output_that_changed_makes_its_stage_changed(repository: Path) -> None:
    versions = DvcRepo()
    write(repository / "out", "1")
    versions.commit("first")
    write(repository / "out", "two")
    assert "first" in versions.changed()


def test_commit_leaves_git_and_its_ignore_file_alone(repository: Path) -> None:
    before = (repository / ".gitignore").read_text(encoding="utf-8")
    write(repository / "out", "1")
    DvcRepo().commit("first")
    assert (repository / ".gitignore").read_text(encoding="utf-8") == before
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert "out" not in status


def test_folder_without_a_repository_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError, match=r"no DVC repository.*--no-commit"):
        DvcRepo()


def test_repository_from_an_archive_without_git_says_what_makes_it_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(".git")
    with pytest.raises(WorkspaceError, match=r"in no Git repository.*run `git init`") as refused:
        DvcRepo()
    assert "--no-commit" not in str(refused.value)  # `make run` can't take it
    subprocess.run(["git", "init", "-q"], check=True)
    assert DvcRepo().changed()


def test_folder_comes_back_from_the_cache_and_from_the_remote(repository: Path) -> None:
    versions = DvcRepo()
    write(repository / "out", "1")
    versions.commit("first")
    md5 = versions.outputs()["out"]
    write(repository / "out", "two")
    versions.bring(md5, repository / "back")
    assert (repository / "back" / "file").read_text(encoding="utf-8") == "1"
    with (repository / ".dvc" / "config").open("a", encoding="utf-8") as config:
        config.write("[core]\n    remote = here\n['remote \"here\"']\n    url = ../remote\n")
    write(repository / "out", "1")
    from dvc.repo import Repo

    Repo().push()
    shutil.rmtree(repository / ".dvc" / "cache")
    versions.bring(md5, repository / "again")
    assert (repository / "again" / "file").read_text(encoding="utf-8") == "1"
    shutil.rmtree(repository / ".dvc" / "cache")
    shutil.rmtree(repository / "remote")
    with pytest.raises(WorkspaceError, match="neither in its cache nor in its remote"):
        versions.bring(md5, repository / "never")


def test_malformed_graph_is_one_message(repository: Path) -> None:
    (repository / "dvc.yaml").write_text("stages: [", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="DVC can't go on"):
        DvcRepo().changed()


def test_settings_that_dvc_cant_read_are_told_with_line_and_remedy(repository: Path) -> None:
    """Its reader is stricter than ours: a name with a colon inside {...} has to stand in quotes."""
    (repository / "params.yaml").write_text("one: {a: 1}\ntwo: {factory: net:make}\n", encoding="utf-8")
    with pytest.raises(
        WorkspaceError, match=r"'params\.yaml'.* line 2: found unexpected ':'.*put what holds a colon in quotes"
    ):
        DvcRepo().changed()


def test_stage_that_dvc_runs_does_not_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "first")
    assert inside_dvc()
    with pytest.raises(WorkspaceError, match="DVC commits the stages that it runs"):
        DvcRepo()


@pytest.mark.parametrize("name", ["dvc.lock", ".dvc/tmp/rwlock"])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_file_of_dvcs_that_a_kill_cut_off_is_made_anew(repository: Path, name: str, share: float) -> None:
    versions, path = DvcRepo(), repository / name
    for folder, stage in (("out", "first"), ("end", "second")):
        write(repository / folder, "1")
        versions.commit(stage)
    whole = (repository / "dvc.lock").read_bytes()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for stage in sorted(versions.changed()):
        versions.commit(stage)
    assert versions.changed() == frozenset()
    assert (repository / "dvc.lock").read_bytes() == whole


def test_settings_of_dvc_that_are_wrong_are_left_alone(repository: Path) -> None:
    (repository / "dvc.yaml").write_text("stages: [first", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="DVC can't go on"):
        DvcRepo().changed()
    assert (repository / "dvc.yaml").read_text(encoding="utf-8") == "stages: [first"
