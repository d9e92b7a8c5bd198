"""A machine that fails: disk full, files read-only, cut off or edited, two runs at once, a clock that is wrong.

Each is one message and exit code 2, what was there before stays, and once it is mended the next run goes on.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flows import command
from flows.compress import compress
from flows.stages import FLOWS
from tasks.environment import REPOSITORY
from tasks.registry import decisions, mlflow_models, promote

HOLD = """
import sys
from tasks.workspace import locked
from tasks.workspace import DEFAULT_ROOT, Workspace
with locked(Workspace(DEFAULT_ROOT)):
    print("held", flush=True)
    sys.stdin.read()
"""
ALL = ("baseline", "analysis", "iterations", "dense", "onnx", "report")


def ended(capsys: pytest.CaptureFixture[str], run: command.FlowFunction = FLOWS["prune"]) -> tuple[int, str]:
    """Run a stage, or all of them, as a command; return its exit code and what it said on stderr."""
    capsys.readouterr()
    logging.getLogger("secateur").handlers.clear()
    try:
        command.main("stage", run, "", ["--no-commit"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("stage: ") == (code != 0)
    return code, said


def files(*folders: str) -> dict[str, bytes]:
    """The content of some of the workspace's folders."""
    found = (path for folder in folders for path in Path("artifacts", folder).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in found}


def begin_anew() -> None:
    shutil.rmtree("artifacts/iterations")


def one_step(settings: dict[str, Any]) -> None:
    settings["prune"].update(iterations=1, recipes=[], max_accuracy_drop=0.9)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let the system refuse to make any file longer, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Let go of root's right to write everywhere; any other user has none to let go of."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_full_disk_in_the_loop_is_one_message_and_the_next_run_ends_with_the_same_bytes(
    shop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.change(one_step)
    before = files("baseline", "analysis", "dense", "onnx")
    with files_up_to(6000):
        code, said = ended(capsys)
    assert code == command.FAULT
    assert "the system refused a file operation" in said
    assert "File too large" in said
    assert "run the same command again" in said
    assert files("baseline", "analysis", "dense", "onnx") == before
    assert ended(capsys)[0] == 0
    after = files("iterations")
    begin_anew()
    assert ended(capsys)[0] == 0
    assert files("iterations") == after


def test_file_that_finds_no_space_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    from pruning.io.files import replace_file

    place = tmp_path / "folder" / "file"
    replace_file(place, b"before")
    with files_up_to(1000), pytest.raises(OSError, match="File too large") as refused:
        replace_file(place, b"\0" * 2000)
    assert refused.value.filename == str(place)
    assert [path.name for path in place.parent.iterdir()] == ["file"]
    assert place.read_bytes() == b"before"


def test_read_only_workspace_is_one_message_and_stays(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shop.change(one_step)
    before = files(*ALL)
    Path("artifacts").chmod(0o555)
    shop.root.chmod(0o755)
    try:
        with as_nobody():
            code, said = ended(capsys)
    finally:
        Path("artifacts").chmod(0o755)
    assert code == command.FAULT
    assert "the workspace artifacts can't be written: Permission denied; nothing was changed" in said
    assert files(*ALL) == before
    assert ended(capsys)[0] == 0


def test_checkpoint_cut_off_in_mid_loop_is_one_message_and_is_never_sealed(
    shop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Path("artifacts/iterations/stage.json")
    record.unlink()  # as a kill leaves it
    weights = Path("artifacts/iterations/01/weights.safetensors")
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole[:-100])
    code, said = ended(capsys)
    assert code == command.FAULT
    assert "checkpoint artifacts/iterations/01: weights.safetensors is damaged" in said
    assert weights.exists()
    assert not record.exists()
    weights.write_bytes(whole)
    assert ended(capsys)[0] == 0
    assert record.exists()


def test_checkpoint_of_another_attempt_in_its_place_is_one_message(
    shop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("artifacts/iterations/stage.json").unlink()
    shutil.rmtree("artifacts/iterations/01")
    shutil.copytree("artifacts/baseline", "artifacts/iterations/01")
    code, said = ended(capsys)
    assert code == command.FAULT
    assert "artifacts/iterations/01 holds other weights than artifacts/iterations/ledger.json says" in said


def test_edited_ledger_is_one_message_and_beginning_anew_is_a_way_out(
    shop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path("artifacts/iterations/ledger.json")
    wanted = place.read_bytes()
    Path("artifacts/iterations/stage.json").unlink()
    ledger = json.loads(wanted)
    ledger["attempts"][0]["measured"]["score"] = 1.0
    place.unlink()
    place.write_text(json.dumps(ledger), encoding="utf-8")
    code, said = ended(capsys)
    assert code == command.FAULT
    assert "artifacts/iterations/ledger.json was edited" in said
    assert "delete artifacts/iterations to start the loop over" in said
    begin_anew()
    assert ended(capsys)[0] == 0
    assert place.read_bytes() == wanted


def test_second_run_in_another_process_is_one_message_and_the_first_goes_on(
    shop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert first.stdout
    assert first.stdout.readline() == b"held\n"
    before = files(*ALL)
    refused, said = ended(capsys)
    assert refused == command.FAULT
    assert "the workspace artifacts is in use by another run; wait for it to end" in said
    assert files(*ALL) == before
    first.communicate(timeout=20)
    assert first.returncode == 0
    assert ended(capsys)[0] == 0


def test_clock_set_back_makes_nothing_current_that_is_not_and_nothing_anew(
    shop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    later = time.time() + 1e8
    for path in [Path("params.yaml"), *Path("artifacts").rglob("*"), *Path("data").rglob("*")]:
        os.utime(path, (later, later))  # the clock was ahead while all this was written
    before = files(*ALL)
    code, said = ended(capsys, compress)
    assert code == 0
    assert "every stage is current" in said
    assert files(*ALL) == before
    shop.change(one_step)
    assert "attempt 1" in ended(capsys)[1]
    assert files("iterations") != {place: content for place, content in before.items() if "iterations" in place}


def test_decisions_follow_each_other_though_the_clock_went_back(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        years = iter((2031, 2027, 2025))

        @classmethod
        def now(cls, zone: Any) -> Any:
            return datetime(next(cls.years), 1, 1, tzinfo=zone)

    monkeypatch.setattr(decisions, "datetime", Clock)

    promote.promote(shop.settings, promote.Case("1", None, (), ()))
    shop.same_model_again()
    assert shop.register() == "2"
    promote.promote(shop.settings, promote.Case("2", "1", (), ()))
    promote.roll_back(shop.settings)
    found = mlflow_models.at(shop.settings, "production")
    assert found is not None
    assert found.number == "1"
    lines = [json.loads(line) for line in decisions.FILE.read_text(encoding="utf-8").splitlines()]
    assert [(line["time"][:4], line["decision"]) for line in lines] == [
        ("2031", "promoted"),
        ("2027", "promoted"),
        ("2025", "rolled back"),
    ]
