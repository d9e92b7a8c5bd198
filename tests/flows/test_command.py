"""A fault of the user's: one message on stderr, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flows import command, stage_runner
from flows.compress import compress
from flows.stages import FLOWS
from tasks.environment import REPOSITORY
from tasks.loop.ledger import read_ledger
from tasks.registry import mlflow_client, mlflow_runs

prepare, baseline, analyze, profile, measurements, prune = list(FLOWS.values())[:6]

Change = Callable[[dict[str, Any]], object]
Write = Callable[[Change | None], Path]
Flow = Callable[[str, str, bool], object]


def fails(capsys: pytest.CaptureFixture[str], flow: Flow, *arguments: str) -> str:
    """Run a command that has to fail as a user's fault does, and return its message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command.main("stage", flow, "", [*arguments, "--no-commit"])
    assert ended.value.code == command.FAULT
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.count("stage: ") == 1
    return printed.err


def succeeds(flow: Flow, *arguments: str) -> None:
    command.main("stage", flow, "", [*arguments, "--no-commit"])


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_wrong_settings_are_one_message_and_nothing_is_made(write_params: Write, capsys: Any) -> None:
    write_params(lambda s: s["prune"].update(criterion="l3_norm", creterion=1))
    message = fails(capsys, compress)
    assert "params.yaml has 2 faults" in message
    assert not Path("artifacts").exists()


def test_absent_settings_file_is_one_message(write_params: Write, capsys: Any) -> None:
    write_params(None)
    assert "there is no settings file other.yaml" in fails(capsys, prepare, "--params", "other.yaml")


def test_unwritable_workspace_is_one_message(write_params: Write, capsys: Any) -> None:
    write_params(None)
    Path("taken").write_text("kept", encoding="utf-8")
    assert "can't be written" in fails(capsys, prepare, "--workspace", "taken")
    assert "can't be written" in fails(capsys, prepare, "--workspace", "/proc/secateur")
    assert Path("taken").read_text(encoding="utf-8") == "kept"


def test_stage_before_its_turn_names_the_one_to_run(write_params: Write, capsys: Any) -> None:
    write_params(None)
    assert "secateur run prepare" in fails(capsys, baseline)


def test_factory_that_raises_is_named_with_its_arguments(write_params: Write, capsys: Any) -> None:
    write_params(lambda s: s["model"].update(kwargs={"width": -1}))
    succeeds(prepare)
    assert "own_project:small" in fails(capsys, baseline)


def test_model_that_cannot_take_the_data_is_one_message(write_params: Write, capsys: Any) -> None:
    write_params(lambda s: s["model"].update(kwargs={"input_shape": [3, 8, 8]}))
    succeeds(prepare)
    assert "channels" in fails(capsys, baseline)


def test_file_error_of_the_system_is_one_message(write_params: Write, capsys: Any) -> None:
    write_params(None)

    def full(params: str, workspace: str, commit: bool) -> None:
        raise OSError(28, "No space left on device", "somewhere/weights")

    message = fails(capsys, full)
    assert "somewhere/weights: No space left on device" in message
    assert "What was finished before is kept" in message


def test_debug_shows_the_traceback_and_ends_with_the_same_code(write_params: Write, capsys: Any) -> None:
    write_params(None)
    with pytest.raises(SystemExit) as ended:
        command.main("stage", baseline, "", ["--debug", "--no-commit"])
    assert ended.value.code == command.FAULT
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert "secateur run prepare" in shown.splitlines()[-1]


@pytest.fixture(scope="module")
def trained(
    finished_project: Path, tmp_path_factory: pytest.TempPathFactory, project_writer: Callable[..., Path]
) -> Path:
    """A project whose data and baseline are there: those of the finished one, which are current in this one too."""
    folder = tmp_path_factory.mktemp("trained")
    for made in ("data", "artifacts/baseline"):
        shutil.copytree(finished_project / made, folder / made)
    project_writer(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        succeeds(prepare)
        succeeds(baseline)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same project, to be damaged."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_damaged_baseline_is_one_message_and_stays(copied: Path, capsys: Any) -> None:
    weights = copied / "artifacts" / "baseline" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    before = files(copied / "artifacts")
    message = fails(capsys, compress)
    assert "weights.safetensors" in message
    assert "dvc checkout" in message
    assert files(copied / "artifacts") == before


def test_damaged_data_are_one_message(copied: Path, capsys: Any) -> None:
    path = copied / "data" / "train.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert "train.safetensors" in fails(capsys, compress)


def test_damaged_weights_that_were_brought_along_are_one_message(
    copied: Path, capsys: Any, project_writer: Callable[..., Path]
) -> None:
    (copied / "mine.pt").write_bytes(b"not a file of torch")

    def change(settings: dict[str, Any]) -> None:
        settings["model"]["weights"] = "mine.pt"

    project_writer(copied, change)
    assert "mine.pt" in fails(capsys, baseline)


def test_other_data_than_the_baseline_are_an_error_that_names_both(
    copied: Path, capsys: Any, project_writer: Callable[..., Path]
) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["data"]["kwargs"] = {"seed": 1}

    project_writer(copied, change)
    for one in (prepare, analyze, profile, measurements):
        succeeds(one)
    message = fails(capsys, prune)
    assert "the baseline learned from the data" in message
    assert "the workspace holds" in message

    def allow(settings: dict[str, Any]) -> None:
        change(settings)
        settings["prune"].update(allow_other_data=True, max_attempts=1)

    project_writer(copied, allow)
    succeeds(prune)


def test_baseline_that_was_brought_along_remembers_its_data(
    copied: Path, capsys: Any, project_writer: Callable[..., Path]
) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["data"]["kwargs"] = {"seed": 1}
        settings["model"]["weights"] = "artifacts/baseline/weights.safetensors"
        settings["baseline"]["recipe"] = None

    project_writer(copied, change)
    for one in (prepare, baseline, analyze, profile, measurements):
        succeeds(one, "--workspace", "other")
    assert "the baseline learned from the data" in fails(capsys, prune, "--workspace", "other")


def test_signal_is_one_message_whatever_fails_by_it_and_lets_go_of_the_workspace(
    tmp_path: Path, project_writer: Callable[..., Path]
) -> None:
    project_writer(tmp_path)
    code = """
import os, signal, time
from pathlib import Path
from flows import command
from pruning.errors import WorkspaceError
from tasks.workspace import locked
from tasks.workspace import Workspace

def ended(params, workspace, commit):
    with locked(Workspace(Path(workspace))):
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(10)
        finally:
            raise WorkspaceError("something that the signal brought about")

command.main("stage", ended, "", ["--no-commit"])
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DVC_STAGE": "tests"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGHUP
    assert done.stderr == "\nstage: ended by SIGHUP; run the same command again to continue\n"
    with FileLock(tmp_path / "artifacts/.lock", timeout=0):
        pass


def test_warnings_of_the_library_reach_the_terminal(write_params: Write, capsys: Any) -> None:
    write_params(None)

    def warns(params: str, workspace: str, commit: bool) -> None:
        logging.getLogger("pruning.allocation.knapsack").warning("a group can't give what it was asked for")

    succeeds(warns)
    assert capsys.readouterr().err == "a group can't give what it was asked for\n"


@pytest.mark.parametrize(
    ("end", "status"), [(SystemExit, "KILLED"), (KeyboardInterrupt, "KILLED"), (ZeroDivisionError, "FAILED")]
)
def test_mlflows_run_says_how_it_ended_and_goes_on(
    shop: Any, monkeypatch: pytest.MonkeyPatch, end: type[BaseException], status: str
) -> None:
    monkeypatch.setattr(stage_runner, "BY_DVC", False)
    ledger = read_ledger(shop.workspace.folder("iterations"))
    client, run_id = mlflow_client.open_store(shop.settings.tracking.uri), mlflow_runs.project(shop.settings, ledger)

    def found() -> str:
        return str(client.get_run(run_id).info.status)

    def run_until_the_end() -> None:
        with pytest.raises(end), stage_runner.recorded_end(stage_runner.Run.begin("params.yaml", "artifacts", False)):
            raise end

    run_until_the_end()
    assert found() == "FINISHED"  # it had ended before: nothing is taken back
    client.update_run(run_id, "RUNNING")
    run_until_the_end()
    assert found() == status
    assert mlflow_runs.project(shop.settings, ledger) == run_id
    assert found() == "RUNNING"
    assert shop.register() == "1"
    assert found() == "FINISHED"


def test_a_latency_that_the_baseline_meets_is_refused_before_it_is_trained(write_params: Write, capsys: Any) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["profile"] = {"batch_sizes": [1], "threads": [1]}
        settings["prune"].update(target={"latency_ms": 10_000.0})

    write_params(change)
    assert "latency_ms is 10,000.0, but the baseline takes" in fails(capsys, compress)
    assert Path("artifacts/profile").is_dir()
    assert not Path("artifacts/baseline").exists()


def test_a_warning_of_the_library_is_written_once_in_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    def twice() -> None:
        for _ in range(2):
            logging.getLogger("pruning.plan").warning("group g stays whole")
            logging.getLogger("secateur").info("prune: attempt")

    for _ in range(2):
        command.execute("stage", argparse.Namespace(debug=False), twice)
        assert capsys.readouterr().err.splitlines() == ["group g stays whole", "prune: attempt", "prune: attempt"]
