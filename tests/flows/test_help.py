"""Every command prints its help and does nothing else; none takes an option that it doesn't heed."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

from tasks.environment import REPOSITORY
from tasks.stage_table import NAMES

COMMANDS = [
    "code",
    *NAMES,
    *sorted(
        path.stem
        for path in (REPOSITORY / "flows").glob("*.py")
        if path.stem not in ("__init__", "temporary_server")  # nobody's commands
        and "__main__" in path.read_text(encoding="utf-8")
    ),
]
WITHOUT_WORKSPACE = ("cleanup", "rollback", "serve", "servers", "worker")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_printed_and_nothing_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"flows.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"flows.{name}", run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: python -m flows.{name} ")
    assert ("--workspace" in printed) == (name not in WITHOUT_WORKSPACE)
    assert list(tmp_path.iterdir()) == []


def test_stages_that_share_a_file_have_an_origin() -> None:
    """What `python -m` makes the first argument of the process; DVC joins the arguments into a text."""
    spec = importlib.util.find_spec("flows.prepare")
    assert spec is not None
    assert spec.origin is not None
    assert spec.origin.endswith("stages.py")
