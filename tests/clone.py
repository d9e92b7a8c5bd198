"""A repository of its own with a small project in it, as a person has it: real Git, DVC, Prefect and MLflow."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tasks.environment import REPOSITORY

CODE = (
    *("pruning", "zoo", "tasks", "flows", "dvc.yaml", "prefect.yaml"),
    *(".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"),
)
FOLDERS = (
    "data",
    *(
        f"artifacts/{name}"
        for name in ("baseline", "analysis", "measurements", "iterations", "dense", "onnx", "quantized", "report")
    ),
)
MEASURED = ("artifacts/latency", "artifacts/report/report.html", "artifacts/report/stage.json")
"""What shows latencies, and so differs from run to run. Nothing else does."""

LONGEST_S = 600.0

Writer = Callable[..., Path]


class Clone:
    """A repository of its own, with the small project in it."""

    def __init__(self, root: Path, code: Path, writer: Writer, home: Path) -> None:
        self.root = root
        shutil.copytree(code, root, dirs_exist_ok=True)
        writer(root)
        tools = str(Path(sys.executable).parent)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.run("git", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start")

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def flow(self, name: str = "compress", *options: str) -> str:
        return self.run(sys.executable, "-m", f"flows.{name}", *options)

    def start(self, *command: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command in a group of its own, with more in its environment."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment | more,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def copy(self, root: Path) -> Clone:
        """Return another one of the same state."""
        shutil.copytree(self.root, root, symlinks=True)
        other = copy(self)
        other.root, other.environment = root, dict(self.environment)
        return other

    def status(self) -> str:
        """Say what DVC calls changed, but for the stage that it is told to run each time."""
        said = self.run("dvc", "status").replace("code:\n\talways changed\n", "").strip()
        return said or "up to date"

    def hashes(self) -> dict[str, str]:
        """Hash everything that has the same bytes every time."""
        files = (path for folder in FOLDERS for path in (self.root / folder).rglob("*") if path.is_file())
        named = {path.relative_to(self.root).as_posix(): path for path in sorted(files)}
        return {name: sha256(path.read_bytes()).hexdigest() for name, path in named.items() if name not in MEASURED}

    def recorded(self, query: str) -> list[Any]:
        with sqlite3.connect(self.root / "mlflow.db") as store:
            return store.execute(query).fetchall()

    def assert_tracked_once(self) -> None:
        ledger = json.loads((self.root / "artifacts/iterations/ledger.json").read_text(encoding="utf-8"))
        assert self.recorded("select status from runs") == [("FINISHED",)]
        steps = self.recorded("select step from metrics where key = 'accuracy' order by step")
        assert steps == [(row["attempt"],) for row in ledger["attempts"]]
        assert self.recorded("select name, version from model_versions") == [("small", 1)]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code as it is now, once for all clones: an edit between two of them would be a difference of its own."""
    root = tmp_path_factory.mktemp("code")
    for place in CODE:
        source, goal = REPOSITORY / place, root / place
        goal.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, goal)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def new_clone(
    tmp_path_factory: pytest.TempPathFactory, code: Path, project_writer: Writer, home: Path
) -> Callable[[], Clone]:
    return lambda: Clone(tmp_path_factory.mktemp("clone"), code, project_writer, home)
