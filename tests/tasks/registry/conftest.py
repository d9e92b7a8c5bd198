"""A repository with real Git and DVC."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MakeRepository = Callable[[str], Path]
"""dvc.yaml -> the folder of a repository with these stages, which is the working directory from then on."""


@pytest.fixture
def make_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRepository:
    def make(stages: str) -> Path:
        monkeypatch.chdir(tmp_path)
        subprocess.run(["git", "init", "-q"], check=True)
        from dvc.repo import Repo

        Repo.init().close()
        (tmp_path / ".gitignore").write_text("/out\n/end\n", encoding="utf-8")
        (tmp_path / "dvc.yaml").write_text(stages, encoding="utf-8")
        return tmp_path

    return make
