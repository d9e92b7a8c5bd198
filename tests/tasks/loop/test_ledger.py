from __future__ import annotations

import json
from pathlib import Path

import pytest

from pruning.allocation.schedule import Attempt, ScheduleSettings, Stop
from pruning.errors import WorkspaceError
from tasks.loop.ledger import FILE, Ledger, Row, forget_aside, open_ledger, read_ledger
from tasks.models import ModelMetrics
from tests.dying import died_before

BASELINE = ModelMetrics(score=0.9, loss=0.3, macs=1000, parameters=100, size_bytes=400)
SCHEDULE = ScheduleSettings(target=0.8, iterations=4, shape="linear", backoff=0.5, smallest_step=0.05, max_attempts=10)


def run(root: Path, verdicts: str, schedule: ScheduleSettings = SCHEDULE, fingerprint: str = "f") -> Ledger:
    """Carry a loop on, each attempt reaching its goal: `a` accepts, `r` rejects."""
    ledger = open_ledger(root, fingerprint, BASELINE, schedule)
    for verdict in verdicts:
        step = ledger.next(schedule)
        assert isinstance(step, Attempt)
        name = f"{len(ledger.accepted) + 1:02d}" if verdict == "a" else None
        if name:
            (root / name).mkdir()
            (root / name / "weights").write_text(name, encoding="utf-8")
        measured = ModelMetrics(score=0.8, loss=1.0, macs=round(1000 * (1 - step.goal)), parameters=50, size_bytes=200)
        ledger.record(
            Row(
                attempt=step.number,
                goal=step.goal,
                reached=step.goal,
                accepted=verdict == "a",
                measured=measured,
                checkpoint=name,
            )
        )
    return ledger


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_resumed_loop_writes_what_an_uninterrupted_one_writes(tmp_path: Path) -> None:
    run(tmp_path / "whole", "aara")
    for verdicts in ("a", "a", "r", "a"):
        run(tmp_path / "pieces", verdicts)
    assert everything(tmp_path / "whole") == everything(tmp_path / "pieces")


def test_rejected_step_is_halved(tmp_path: Path) -> None:
    ledger = run(tmp_path, "ar")
    step = ledger.next(SCHEDULE)
    assert isinstance(step, Attempt)
    assert step.goal == pytest.approx(0.2 + 0.2 / 2)


def test_what_a_kill_left_without_a_row_is_removed(tmp_path: Path) -> None:
    run(tmp_path, "a")
    (tmp_path / "02").mkdir()
    (tmp_path / "02" / "weights").write_text("half", encoding="utf-8")
    (tmp_path / ".02.partial").mkdir()
    (tmp_path / f".{FILE}.partial").write_text("half", encoding="utf-8")
    run(tmp_path, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01", FILE]


def test_ledger_of_another_fingerprint_begins_anew(tmp_path: Path) -> None:
    run(tmp_path, "aa")
    assert run(tmp_path, "", fingerprint="other").rows == []
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_accepted_attempts_of_another_fingerprint_step_aside_and_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="secateur")
    root = tmp_path / "iterations"
    run(root, "aa")
    before = everything(root)
    run(root, "a", fingerprint="other")
    assert "the 2 accepted attempts of before are in" in caplog.text
    assert everything(tmp_path / ".iterations.aside" / "f") == before
    run(root, "", fingerprint="f")
    assert everything(root) == before, "whoever undoes the change goes on where it was"
    assert [path.name for path in (tmp_path / ".iterations.aside").iterdir()] == ["other"]
    forget_aside(root)
    assert [path.name for path in tmp_path.iterdir()] == ["iterations"]


@pytest.mark.parametrize("at", range(1, 12))
def test_killed_while_a_trajectory_steps_aside_nothing_accepted_is_lost(tmp_path: Path, at: int) -> None:
    root = tmp_path / "iterations"
    run(root, "aa")
    died_before(at, lambda: run(root, "", fingerprint="other"))
    run(root, "", fingerprint="other")
    assert [row.checkpoint for row in run(root, "").accepted] == ["01", "02"]
    assert all((root / name / "weights").read_text(encoding="utf-8") == name for name in ("01", "02"))


def test_more_attempts_continue_and_fewer_cut_back_to_what_they_would_have_given(tmp_path: Path) -> None:
    short = SCHEDULE.model_copy(update={"max_attempts": 2})
    run(tmp_path / "short", "aa", short)
    assert isinstance(read_ledger(tmp_path / "short").next(short), Stop)
    before = everything(tmp_path / "short")
    run(tmp_path / "short", "ra")
    run(tmp_path / "long", "aara")
    assert everything(tmp_path / "short") == everything(tmp_path / "long")
    run(tmp_path / "short", "", short)
    assert everything(tmp_path / "short") == before


def test_edited_ledger_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "ar")
    path = tmp_path / FILE
    found = json.loads(path.read_text(encoding="utf-8"))
    found["attempts"][1]["accepted"] = True
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(WorkspaceError, match="was edited"):
        run(tmp_path, "")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"attempts": []}', '{"digest": 1, "fingerprint": "f"}'])
def test_damaged_ledger_is_one_message_and_stays(tmp_path: Path, content: str) -> None:
    run(tmp_path, "a")
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(WorkspaceError, match="is damaged"):
        run(tmp_path, "")
    assert (tmp_path / "01").is_dir()


def test_checkpoint_that_the_ledger_names_has_to_be_there(tmp_path: Path) -> None:
    run(tmp_path, "a")
    (tmp_path / "01" / "weights").unlink()
    (tmp_path / "01").rmdir()
    with pytest.raises(WorkspaceError, match="01 isn't there"):
        run(tmp_path, "")


def test_ledger_holds_nothing_volatile(tmp_path: Path) -> None:
    run(tmp_path, "ar")
    keys = set(json.loads((tmp_path / FILE).read_text(encoding="utf-8")))
    assert keys == {"fingerprint", "origin", "baseline", "attempts", "digest"}
    assert str(tmp_path) not in (tmp_path / FILE).read_text(encoding="utf-8")
