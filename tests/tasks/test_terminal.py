"""Messages name the command in the form in which the process was started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pruning.errors import WorkspaceError
from tasks.environment import REPOSITORY
from tasks.terminal import FLOWS, command_line
from tasks.workspace import Workspace


@pytest.mark.parametrize(
    ("started", "words", "named"),
    [
        (FLOWS / "stages.py", "run prune", "`python -m flows.prune`"),
        (FLOWS / "compress.py", "run", "`python -m flows.compress`"),
        (FLOWS / "promote.py", "rollback --version 3", "`python -m flows.rollback --version 3`"),
        (REPOSITORY / "secateur" / "__main__.py", "run prune", "`secateur run prune`"),
        (Path("/usr/bin/secateur"), "run", "`secateur run`"),
        (Path("/home/me/flows/mine.py"), "rollback --version 3", "`secateur rollback --version 3`"),
    ],
)
def test_command_is_named_as_the_process_was_started(
    started: Path, words: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(started)])
    assert command_line(words) == named


def test_a_run_is_named_with_the_settings_and_the_workspace_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "run",
        "export",
        "--workspace",
        "trials/two",
        "--set",
        "model.kwargs={'width': 8}",
        "--params=own.yaml",
        "-v",
    ]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/secateur", *given])
    told = command_line("run prepare")
    assert told == (
        "`secateur run prepare --workspace trials/two --set 'model.kwargs={'\"'\"'width'\"'\"': 8}' --params=own.yaml`"
    )
    assert command_line("rollback --version 3") == "`secateur rollback --version 3`"
    monkeypatch.setattr(sys, "argv", [str(FLOWS / "export.py"), "--params", "own.yaml"])
    assert command_line("run prepare") == "`python -m flows.prepare --params own.yaml`"


def test_message_about_a_missing_file_names_the_users_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/secateur", "run", "export"])
    with pytest.raises(WorkspaceError, match="run `secateur run analyze` first"):
        Workspace(tmp_path).read_json("analysis", "curves.json", "analyze", dict[str, float])


def test_no_message_names_a_module_by_itself() -> None:
    """Every text that tells the user what to run asks `command_line`."""
    for folder in ("tasks", "flows", "secateur", "pruning"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            told = [
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if "run `python -m flows" in line or "with `python -m flows" in line or "`python -m flows.{" in line
            ]
            assert told == [] or path.name == "command_line.py", path
