"""What a version's settings may name: what Git tracks at its commit is used, what it doesn't is refused unseen."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.errors import WorkspaceError
from tasks.config.schema import load
from tasks.registry.trust import settings_to_measure_by
from tests.conftest import write_project

MAKES = "from own_project import small\n\n\ndef make(**given):\n    return small(**given)\n"


def _commit() -> str:
    for command in (("add", "-A"), ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "state")):
        subprocess.run(["git", *command], check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_factory_that_git_tracks_at_the_recorded_commit_is_accepted(write_params: Callable[..., Path]) -> None:
    own = load(write_params(None))
    subprocess.run(["git", "init", "-q"], check=True)
    before = _commit()
    Path("own_models.py").write_text(MAKES, encoding="utf-8")
    without_settings = _commit()
    there = write_project(
        Path(),
        lambda s: (
            s["model"].update(factory="own_models:make", kwargs={"width": 8}),
            s["data"].update(factory="nowhere:data"),
        ),
        "trial.yaml",
    )
    commit = _commit()
    found = settings_to_measure_by(own, there, commit)
    assert (found.model.factory, found.model.kwargs) == ("own_models:make", {"width": 8})
    assert (found.data, found.tracking, found.run) == (own.data, own.tracking, own.run)
    for earlier, reason in (
        (before, "Git tracks no such module"),
        (without_settings, "no settings file that Git tracks"),
    ):
        with pytest.raises(WorkspaceError, match=f"'own_models:make' for model.factory, .*{reason}"):
            settings_to_measure_by(own, there, earlier)
