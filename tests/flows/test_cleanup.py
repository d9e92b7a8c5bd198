"""Cleaning up by the settings that it was given."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import command
from flows.cleanup import main

Writer = Callable[..., Path]


@pytest.fixture
def old_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Writer) -> Path:
    """A trial of 31 days, in a project whose params.yaml keeps them for 30 days and keep.yaml for ever."""
    monkeypatch.chdir(tmp_path)
    for name, days in (("params.yaml", 30), ("keep.yaml", 10_000)):
        project_writer(tmp_path, lambda s, days=days: s.update(cleanup={"keep_days": days}), name)
    trial = tmp_path / "trials" / "old"
    trial.mkdir(parents=True)
    then = time.time() - 31 * 24 * 3600
    os.utime(trial, (then, then))
    return trial


def test_settings_that_are_named_say_how_long_things_are_kept(old_trial: Path) -> None:
    main(["--params", "keep.yaml"])
    assert old_trial.exists()
    main([])
    assert not old_trial.exists()


@pytest.mark.parametrize("options", [["--params", "keep.yaml", "--cache"], ["--params", "absent.yaml"]])
def test_settings_that_cannot_be_heeded_are_one_message_and_nothing_goes(
    old_trial: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == command.FAULT
    assert capsys.readouterr().err.count("cleanup: ") == 1
    assert old_trial.exists()


def test_workspace_is_refused_since_it_would_be_ignored(old_trial: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--workspace", "elsewhere"])
    assert ended.value.code == command.FAULT
    assert "unrecognized arguments: --workspace elsewhere" in capsys.readouterr().err
    assert old_trial.exists()
