"""A small project with versions in a registry of its own, for promotion, rollback and restore."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from filelock import FileLock

from pruning.io.files import replace_file
from tasks.config.schema import Settings, load
from tasks.fingerprint import fingerprint, origin
from tasks.registry import mlflow_client
from tasks.registry import register as registration
from tasks.stage_table import STAGES, body_of, find_stage
from tasks.workspace import Workspace, digest, is_current, seal

Change = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Shop:
    """A project's folder, which is the current one.

    Attributes:
        root: The folder.
        workspace: In it.
    """

    root: Path
    workspace: Workspace

    @property
    def settings(self) -> Settings:
        return load(Path("params.yaml"))

    def change(self, change: Change) -> None:
        path = self.root / "params.yaml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        change(settings)
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def run(self) -> None:
        """Run what isn't current."""
        settings = self.settings
        for stage in STAGES:
            if not is_current(self.workspace.folder(stage.folder), fingerprint(stage, settings, self.workspace)):
                body_of(stage.name)(settings, self.workspace)
                self.seal(stage.name)

    def seal(self, name: str) -> None:
        stage = find_stage(name)
        made_by = origin(stage, self.settings, self.workspace)
        seal(self.workspace.folder(stage.folder), digest(made_by), made_by)

    def register(self) -> str:
        version = registration.register(
            self.settings, self.workspace, Path("params.yaml"), Path("params.yaml").read_bytes()
        )
        assert version is not None
        return version

    def same_model_again(self) -> None:
        """Make another file of the same model: it is registered as a version of its own."""
        path = self.workspace.folder("onnx") / "model.onnx"
        model = onnx.load(path)
        model.doc_string += "again"
        replace_file(path, model.SerializeToString())
        self.seal("export")

    def whole_model(self) -> None:
        """Put the baseline into the dense model's place: it has more MACs and bytes, and is slower."""
        dense, files = self.workspace.folder("dense"), self.workspace.folder("onnx")
        for path in list(self.workspace.folder("baseline").glob("*.*")):
            replace_file(dense / path.name, path.read_bytes())
        self.seal("transform")
        replace_file(files / "model.onnx", (files / "baseline.onnx").read_bytes())
        self.same_model_again()


def _small(settings: dict[str, Any]) -> None:
    settings["prune"].update(iterations=1, recipes=settings["prune"]["recipes"][:1])
    settings["analyze"].update(rates=[0.5])


@pytest.fixture(scope="session")
def finished_project(
    tmp_path_factory: pytest.TempPathFactory, project_writer: Callable[..., Path], worker_id: str
) -> Path:
    """A project whose pipeline has finished, and a store with nothing in it: copied by the tests, never changed.

    It takes twenty seconds, so the first process of a test run that needs it makes it for all of them.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "finished_project"
    with FileLock(root.with_suffix(".lock")):
        if not root.is_dir():
            making = root.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)  # of a process that failed in it
            making.mkdir()
            _finish_project(making, project_writer)
            making.rename(root)
    return root


def _finish_project(root: Path, project_writer: Callable[..., Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        project_writer(root, _small)
        shop = Shop(root, Workspace(Path("artifacts")))
        shop.run()
        mlflow_client.open_store(shop.settings.tracking.uri).search_experiments()


@pytest.fixture
def shop(finished_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A copy of that project, with version 1 registered."""
    return open_shop(finished_project, tmp_path / "shop", monkeypatch)


def open_shop(finished_project: Path, root: Path, patch: pytest.MonkeyPatch) -> Shop:
    """Copy the finished project, make it the current folder, and register version 1."""
    shutil.copytree(finished_project, root, copy_function=os.link)
    for name in ("params.yaml", "own_project.py", "mlflow.db"):  # these are written in place
        content = (root / name).read_bytes()
        (root / name).unlink()
        (root / name).write_bytes(content)
    patch.chdir(root)
    shop = Shop(root, Workspace(Path("artifacts")))
    shop.register()
    return shop
