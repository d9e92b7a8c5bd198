"""A run on which nothing has changed says what the last one said, in a second; whatever has changed is noticed.

So does the command of one stage.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.compress import compress, say_again
from flows.stages import FLOWS
from tasks import last_run
from tasks.environment import REPOSITORY
from tasks.file_cache import holding
from tasks.last_run import states_of
from tasks.registry.mlflow_client import hash_of_content
from tasks.stage_table import find_stage
from tasks.workspace import Workspace

PARAMS, WORKSPACE = Path("params.yaml"), Workspace(Path("artifacts"))
AGAIN = """
import sys
sys.argv = ["flows.compress", "--no-commit"]
import runpy
runpy.run_module("flows.compress", run_name="__main__")
from tasks.last_run import states_of
from pathlib import Path
assert all(state.is_current for state in states_of(Path("params.yaml"), Path("artifacts")))
heavy = {"torch", "mlflow", "prefect", "onnx", "onnxruntime", "sklearn", "matplotlib", "own_project"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
STAGE_AGAIN = """
import sys
sys.argv = ["flows.prepare", "--no-commit"]
import runpy
runpy.run_module("flows.prepare", run_name="__main__")
heavy = {"torch", "numpy", "mlflow", "prefect", "onnx", "own_project"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


def _run(code: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def recorded(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project whose last run found nothing to do, and what the run printed."""
    root = tmp_path_factory.mktemp("recorded") / "project"
    shutil.copytree(finished_project, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        compress("params.yaml", "artifacts", commit=False)
    done = _run(AGAIN, root)
    assert done.returncode == 0, done.stderr
    assert "every stage is current: nothing to run" in done.stderr
    return root, done.stdout


@pytest.fixture
def project(recorded: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(recorded[0], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    store = last_run.Answer(
        text=recorded[1],
        refusal=None,
        store="sqlite:///mlflow.db",
        store_content=str(hash_of_content("sqlite:///mlflow.db")),
    )
    assert _found() == store
    return tmp_path / "here"


def _found() -> last_run.Answer | None:
    with holding():
        return last_run.same_again(PARAMS, WORKSPACE)


def test_nothing_that_takes_seconds_is_imported_and_the_same_is_said(
    recorded: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recorded[0])
    assert "registered       small, version 1, alias candidate" in recorded[1]
    (WORKSPACE.root / last_run.FILE).unlink()
    compress("params.yaml", "artifacts", commit=False)
    assert capsys.readouterr().out == recorded[1], "everything was asked"


def _edit(name: str, old: str, new: str) -> Callable[[], object]:
    def edit() -> None:
        text = Path(name).read_text(encoding="utf-8")
        assert old in text
        Path(name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def _write(name: str, text: str = "") -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")


def _newer_torch() -> None:
    _write("newer/torch-99.0.dist-info/METADATA", "Name: torch\nVersion: 99.0\n")
    sys.path.insert(0, str(Path("newer").absolute()))


def _other_code() -> None:
    record = json.loads((WORKSPACE.root / last_run.FILE).read_text(encoding="utf-8"))
    (WORKSPACE.root / last_run.FILE).write_text(json.dumps({**record, "program": "0"}), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        _edit("params.yaml", "seed: 0", "seed: 1"),
        _edit("own_project.py", "torch.arange(0,", "torch.arange(1,"),
        lambda: _write("torch.py"),
        lambda: _write("own_project/__init__.py"),
        _newer_torch,
        _other_code,
        lambda: Path("artifacts/dense/plan.json").write_bytes(b"{}"),
        lambda: Path("artifacts/onnx/more").write_bytes(b""),
        lambda: Path("artifacts/report/report.html").unlink(),
        lambda: Path("data/stage.json").unlink(),
        lambda: shutil.rmtree("artifacts/latency"),
        lambda: Path("artifacts/.last_run.json").write_bytes(b"{"),
    ],
    ids=lambda change: None,
)
def test_whatever_changes_is_noticed(
    project: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    change()
    assert _found() is None


def test_a_store_that_was_edited_or_lost_is_asked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect("mlflow.db") as store:
        store.execute("delete from registered_model_aliases")
    compress("params.yaml", "artifacts", commit=False)
    with sqlite3.connect("mlflow.db") as store:
        assert store.execute("select alias from registered_model_aliases").fetchall() == [("candidate",)]
    Path("mlflow.db").unlink()
    assert _found() is not None, "no file of the workspace changed"
    assert not say_again(PARAMS, WORKSPACE, commit=False), "the store is gone"


def test_a_stage_that_is_not_current_is_told_with_its_reason(project: Path) -> None:
    _edit("own_project.py", "torch.arange(0,", "torch.arange(1,")()
    first = states_of(PARAMS, WORKSPACE.root)[0]
    assert (first.state, first.reasons) == ("changed", ("module own_project was edited",))


def _prepare_again() -> bool:
    with holding():
        return last_run.stage_again(PARAMS, WORKSPACE, find_stage("prepare"))


def test_a_stage_that_was_run_alone_is_told_without_torch(project: Path) -> None:
    answered = (WORKSPACE.root / last_run.FILE).read_bytes()
    FLOWS["prepare"]("params.yaml", "artifacts", False)
    assert (WORKSPACE.root / last_run.FILE).read_bytes() == answered, "the answer of all stages stays"
    (WORKSPACE.root / last_run.FILE).unlink()
    assert not _prepare_again()
    FLOWS["prepare"]("params.yaml", "artifacts", False)
    FLOWS["analyze"]("params.yaml", "artifacts", False)
    record = json.loads((WORKSPACE.root / last_run.FILE).read_text(encoding="utf-8"))
    assert (record["stages"].keys(), record["answer"]) == ({"prepare", "analyze"}, None)
    assert _found() is None, "nobody has asked all stages"
    done = _run(STAGE_AGAIN, project)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "prepare: is current\n"


@pytest.mark.parametrize(
    ("change", "is_current"),
    [
        (_edit("params.yaml", "seed: 0", "seed: 1"), False),
        (_edit("own_project.py", "torch.arange(0,", "torch.arange(1,"), False),
        (_newer_torch, False),
        (_other_code, False),
        (lambda: Path("data/train.safetensors").write_bytes(b""), False),
        (lambda: shutil.rmtree("data"), False),
        (lambda: Path("artifacts/.last_run.json").write_bytes(b"{"), False),
        (lambda: shutil.rmtree("artifacts/latency"), True),
    ],
    ids=lambda change: None,
)
def test_what_changes_for_one_stage_is_noticed_by_its_command(
    project: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object], is_current: bool
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert _prepare_again()
    change()
    assert _prepare_again() == is_current
