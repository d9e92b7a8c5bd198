"""What a registered version leads back to: every file with its hash, from MLflow, the workspace, DVC and Git."""

from __future__ import annotations

import json
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from flows.stage_runner import Run
from pruning.errors import WorkspaceError
from tasks.registry import git_snapshot, mlflow_models, restore
from tasks.registry.dvc_repo import DvcRepo
from tasks.registry.manifest import Record, make_record
from tasks.registry.register import register

pytestmark = pytest.mark.thorough

STAGES = """
stages:
  prepare:
    cmd: none
    outs: [data]
  transform:
    cmd: none
    outs: [artifacts/dense]
"""
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@t")


def git(*command: str) -> str:
    return subprocess.run(["git", *IDENTITY, *command], capture_output=True, text=True, check=True).stdout


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def put_back(shop: Any, number: str = "1", without: tuple[str, ...] = ()) -> restore.Restored:
    version = mlflow_models.find(shop.settings, number=number)
    return restore.restore(shop.settings, version, Path("back"), shop.workspace, without)


def versioned(shop: Any) -> None:
    """Make the project a repository of Git and DVC, its data and dense model committed, with a remote."""
    git("init", "-q")
    from dvc.repo import Repo

    Repo.init().close()
    Path("dvc.yaml").write_text(STAGES, encoding="utf-8")
    Path(".gitignore").write_text(
        "/artifacts/\n/data/\n/mlflow.db\n/mlartifacts/\n/remote/\n/back/\n", encoding="utf-8"
    )
    with Path(".dvc/config").open("a", encoding="utf-8") as config:
        config.write("[core]\n    remote = here\n    analytics = false\n['remote \"here\"']\n    url = ../remote\n")
    git("add", "-A")
    git("commit", "-qm", "start")
    shop.workspace.folder("data").joinpath("stage.json").touch()
    for stage in ("prepare", "transform"):
        DvcRepo().commit(stage)
    Repo().push()


@pytest.mark.slow
def test_files_of_an_earlier_version_come_back_after_others_and_without_the_workspace(shop: Any) -> None:
    versioned(shop)
    objects = git("count-objects")
    Path("own_project.py").write_text(Path("own_project.py").read_text() + "\n# edited, not committed\n")
    Path("new.py").write_text("not tracked\n", encoding="utf-8")
    shop.same_model_again()
    assert shop.register() == "2"
    wanted = {name: hashes(Path(name)) for name in ("data", "artifacts/baseline", "artifacts/dense", "artifacts/onnx")}
    code = {name: Path(name).read_text(encoding="utf-8") for name in ("params.yaml", "own_project.py", "new.py")}
    status = git("status", "--porcelain")
    for number in ("3", "4", "5"):
        shop.same_model_again()
        assert shop.register() == number
    for name in ("data", "artifacts", ".dvc/cache"):
        shutil.rmtree(name)
    Path("new.py").unlink()
    back = put_back(shop, "2")
    assert {name: hashes(Path("back") / name) for name in wanted} == wanted
    assert {name: (Path("back") / name).read_text(encoding="utf-8") for name in code} == code
    assert {place for place, name in back.sources.items() if name == "DVC"} == {
        f"data/{name}" for name in hashes(Path("back/data"))
    }
    assert status != git("status", "--porcelain")
    assert git("count-objects") == objects
    summary = json.loads(Path("back/restored.json").read_text(encoding="utf-8"))
    assert summary["version"] == "2"
    assert summary["code"].startswith(f"commit {git('rev-parse', 'HEAD').strip()} and what was not committed")


@pytest.mark.slow
def test_everything_that_is_missing_is_named_and_nothing_is_written(shop: Any) -> None:
    versioned(shop)
    shop.same_model_again()
    assert shop.register() == "2"
    for name in ("data", ".dvc/cache", "remote"):
        shutil.rmtree(name)
    git("commit", "-qm", "other", "--allow-empty", "--amend")
    git("reflog", "expire", "--expire=now", "--all")
    git("gc", "-q", "--prune=now")
    with pytest.raises(WorkspaceError) as raised:
        put_back(shop, "2")
    text = str(raised.value)
    for part in (
        "nothing was written",
        "Git has no commit",
        "data/test.safetensors: nowhere",
        "data/train.safetensors",
    ):
        assert part in text
    assert not Path("back").exists()
    assert not [path for path in Path().iterdir() if "back" in path.name]
    put_back(shop, "2", ("code", "data"))
    assert not Path("back/data").exists()
    assert Path("back/artifacts/dense/weights.safetensors").exists()


def test_file_that_mlflow_damaged_is_taken_from_elsewhere_or_refused(shop: Any) -> None:
    (damaged,) = Path("mlartifacts").rglob("versions/*/artifacts/dense/weights.safetensors")
    damaged.unlink()
    damaged.write_bytes(b"something else")
    assert put_back(shop).sources["artifacts/dense/weights.safetensors"] == "workspace"
    with pytest.raises(WorkspaceError, match="is there already"):
        put_back(shop)
    shutil.rmtree("back")
    shutil.rmtree(shop.workspace.folder("dense"))
    with pytest.raises(WorkspaceError, match=r"artifacts/dense/weights.safetensors: nowhere with sha256"):
        put_back(shop)


def test_link_is_no_folder_to_restore_into(shop: Any) -> None:
    Path("back").symlink_to("nowhere")
    with pytest.raises(WorkspaceError, match="back is a symbolic link; give a new or an empty folder"):
        put_back(shop)
    assert not Path("nowhere").exists()


def test_password_of_the_store_is_not_recorded(shop: Any, tmp_path: Path) -> None:
    uri = "http://user:s3cret@host:5000"
    shop.change(lambda settings: settings["tracking"].update(uri=uri))
    patch = b"+  uri: http://user:s3cret@host:5000\n"
    code = git_snapshot.Source("0" * 40, "1" * 40, patch)
    (tmp_path / "kept").mkdir()
    params = Path("params.yaml")
    content = params.read_bytes()
    params.write_bytes(b"# edited since\n" + content)
    served = shop.workspace.folder("onnx") / "model.onnx"
    found = make_record(shop.settings, shop.workspace, params, content, tmp_path / "kept", code, served)
    assert (found.commit, found.tree, found.patch_sha256) == ("0" * 40, None, None)
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3cret" in path.read_bytes()]
    assert (tmp_path / "kept/params.yaml").read_bytes() == content.replace(b"s3cret", b"***")
    assert found.files["params.yaml"] == sha256((tmp_path / "kept/params.yaml").read_bytes()).hexdigest()


def test_record_that_was_edited_is_refused(shop: Any) -> None:
    (path,) = Path("mlartifacts").rglob("versions/*/record.json")
    path.write_text(path.read_text(encoding="utf-8").replace("params.yaml", "params.yml"), encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"record.json .* was changed"):
        put_back(shop)


@pytest.mark.parametrize(
    "place",
    [
        *("../outside", "/etc/outside", "artifacts/../../outside", "data/../.git/config", "data//x.json", ""),
        *(".git/config", ".git/hooks/post-checkout", ".GIT/config", "data/.git/x.json", "C:/x.json", "data\\x.json"),
        *(".dvc/config", ".envrc", "Makefile", "own_project.py", "data/x.py", "artifacts/dense/x.sh", "dvc.yaml"),
        *("artifacts/iterations/x.json", "data/x.json ", "data/\n.json", "data/\u202ex.json", f"data/{'x' * 999}.json"),
    ],
)
def test_record_that_leads_elsewhere_is_refused(place: str) -> None:
    hashed = {"params.yaml": "0" * 64, "batch.safetensors": "0" * 64}
    assert (
        Record(params="params.yaml", files={**hashed, "data/x.json": "0" * 64, "nets/own.pt": "0" * 64}).commit is None
    )
    with pytest.raises(ValueError, match="is no place that a version's files may have"):
        Record(params="params.yaml", files={**hashed, place: "0" * 64})
    with pytest.raises(ValueError, match="is no place of a settings file"):
        Record(params=place, files={**hashed, place: "0" * 64})


@pytest.mark.parametrize(
    "commit", ["--upload-pack=touch", "-h", "HEAD", "0" * 39, "0" * 40 + "\n", "0" * 40 + " --exec"]
)
def test_commit_that_is_none_is_refused(commit: str) -> None:
    hashed = {"params.yaml": "0" * 64, "batch.safetensors": "0" * 64}
    for name in ("commit", "tree"):
        with pytest.raises(ValueError, match=name):
            Record.model_validate({"params": "params.yaml", "files": hashed, name: commit})


def test_version_that_is_not_there_names_those_that_are(shop: Any) -> None:
    with pytest.raises(WorkspaceError, match="has no version 7; there are: 1"):
        put_back(shop, "7")


def test_code_outside_git_is_not_recorded_and_says_so(shop: Any) -> None:
    assert git_snapshot.snapshot() is None
    assert put_back(shop).code.startswith("not recorded")


def test_code_of_a_repository_without_a_commit_is_not_recorded_and_both_say_so(
    shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    shop.same_model_again()
    caplog.clear()
    assert shop.register() == "2"
    assert "no commit in it" in caplog.text
    assert "no commit in it" in put_back(shop, "2").code


def test_restored_folder_is_a_workspace_whose_stages_are_whole(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_back(shop)
    wanted = hashes(shop.workspace.folder("dense"))
    shutil.copyfile("own_project.py", "back/own_project.py")
    monkeypatch.chdir("back")
    from tasks.data import read_split
    from tasks.workspace import DEFAULT_ROOT, Workspace, contents

    assert len(read_split(shop.settings, Workspace(DEFAULT_ROOT), "test")) > 0
    assert dict(contents(Path("artifacts/dense"), "transform")).items() <= wanted.items()


def test_record_holds_the_settings_that_the_run_used(shop: Any) -> None:
    used = Path("params.yaml").read_bytes()
    run = Run.begin("params.yaml", "artifacts", commit=False)
    shop.same_model_again()
    shop.change(lambda settings: settings["run"].update(seed=7))
    assert register(run.settings, run.workspace, run.params, run.content) == "2"
    recorded = [path.read_bytes() for path in Path("mlartifacts").rglob("versions/*/params.yaml")]
    assert recorded == [used, used]
