"""MLflow as it is, on a temporary SQLite file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from pruning.errors import WorkspaceError
from tasks.config.schema import Settings, load
from tasks.fingerprint import fingerprint
from tasks.loop.ledger import Ledger, read_ledger
from tasks.loop.loop import Loop
from tasks.registry import mlflow_client, mlflow_runs, register
from tasks.stage_table import STAGES, body_of
from tasks.workspace import Workspace, seal

pytestmark = pytest.mark.thorough


@dataclass(frozen=True)
class Tracked:
    settings: Settings
    workspace: Workspace
    run_id: str
    version: str
    client: MlflowClient

    @property
    def ledger(self) -> Ledger:
        return read_ledger(self.workspace.folder("iterations"))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, project_writer: Callable[..., Path]) -> Iterator[Tracked]:
    """A finished pipeline that was tracked attempt by attempt, from inside its folder."""
    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        params = project_writer(root, lambda s: s["prune"].update(iterations=2))
        settings = load(params)
        workspace = Workspace(Path("elsewhere"))

        def track(loop: Loop, row: object) -> None:
            if row is not None:
                mlflow_runs.project(settings, loop.ledger)

        for stage in STAGES:
            body = body_of(stage.name)
            body(settings, workspace, **({"watch": track} if stage.name == "prune" else {}))
            seal(workspace.folder(stage.folder), fingerprint(stage, settings, workspace))
        run_id = mlflow_runs.project(settings, read_ledger(workspace.folder("iterations")))
        version = register.register(settings, workspace, params, params.read_bytes())
        assert version is not None
        place = mlflow_client.absolute(settings.tracking.uri)
        yield Tracked(settings, workspace, run_id, version, MlflowClient(place, place))


def test_address_of_the_store_does_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mlflow_client.absolute("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert mlflow_client.absolute("sqlite:////abs/mlflow.db") == "sqlite:////abs/mlflow.db"
    assert mlflow_client.absolute("http://somewhere:5000") == "http://somewhere:5000"


def test_every_attempt_is_one_step_of_one_run(tracked: Tracked) -> None:
    rows = tracked.ledger.rows
    assert len(rows) > 1
    for key in ("accuracy", "macs", "goal", "accepted"):
        history = tracked.client.get_metric_history(tracked.run_id, key)
        assert [point.step for point in history] == [row.attempt for row in rows]
    measured = [row.measured.score for row in rows if row.measured]
    assert [p.value for p in tracked.client.get_metric_history(tracked.run_id, "accuracy")] == measured


def test_everything_can_be_written_again_without_a_second_of_anything(tracked: Tracked) -> None:
    mlflow_client._client.cache_clear()
    assert mlflow_runs.project(tracked.settings, tracked.ledger) == tracked.run_id
    params = Path("params.yaml")
    assert register.register(tracked.settings, tracked.workspace, params, b"") == tracked.version
    client = tracked.client
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert len(client.search_model_versions("name = 'small'")) == 1
    assert len(client.get_metric_history(tracked.run_id, "accuracy")) == len(tracked.ledger.rows)


def test_settings_are_parameters_and_what_only_stops_is_a_tag(tracked: Tracked) -> None:
    data = tracked.client.get_run(tracked.run_id).data
    assert data.params["prune.target.mac_reduction"] == "0.6"
    assert data.params["prune.recipes.1.name"] == "plain"
    assert "prune.max_attempts" not in data.params
    assert data.tags["prune.max_attempts"] == "12"
    sections = {name.partition(".")[0] for name in data.params}
    assert {"run", "data", "model", "training", "baseline", "prune"} <= sections
    assert not sections & {"tracking", "promote", "cleanup", "machine", "frontier", "export", "benchmark"}


def test_pictures_plan_and_ledger_are_artifacts(tracked: Tracked) -> None:
    names = {file.path for file in tracked.client.list_artifacts(tracked.run_id)}
    assert {"sensitivity.png", "attempts.png", "widths.png", "plan.json", "ledger.json", "report.html"} <= names


def test_version_is_the_candidate_with_its_lineage(tracked: Tracked) -> None:
    found = tracked.client.get_model_version_by_alias("small", "candidate")
    assert str(found.version) == tracked.version
    weights = tracked.workspace.folder("dense") / "weights.safetensors"
    onnx = tracked.workspace.folder("onnx") / "model.onnx"
    assert found.tags["secateur.weights_sha256"] == sha256(weights.read_bytes()).hexdigest()
    assert found.tags["secateur.onnx_sha256"] == sha256(onnx.read_bytes()).hexdigest()
    assert found.tags["secateur.fingerprint"] == tracked.ledger.fingerprint
    assert len(found.tags["secateur.data_fingerprint"]) == 64
    assert found.tags["secateur.git_commit"]
    assert found.run_id == tracked.run_id


def test_registered_model_answers_as_the_file_does(tracked: Tracked) -> None:
    import mlflow
    import onnxruntime

    model = mlflow.pyfunc.load_model("models:/small@candidate")
    signature = model.metadata.signature
    assert signature is not None
    assert signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 1, 8, 8)
    inputs = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tracked.workspace.folder("onnx") / "model.onnx"))
    (expected,) = session.run(None, {session.get_inputs()[0].name: inputs})
    (found,) = model.predict(inputs).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_store_that_was_lost_is_rebuilt_from_the_ledger(tracked: Tracked, tmp_path: Path) -> None:
    moved = tracked.settings.tracking.model_copy(update={"uri": f"sqlite:///{tmp_path}/again.db"})
    settings = tracked.settings.model_copy(update={"tracking": moved})
    run_id = mlflow_runs.project(settings, tracked.ledger)
    again = MlflowClient(moved.uri, moved.uri).get_metric_history(run_id, "accuracy")
    before = tracked.client.get_metric_history(tracked.run_id, "accuracy")
    assert [(p.step, p.value) for p in again] == [(p.step, p.value) for p in before]


def test_store_that_cannot_be_used_is_one_message(tracked: Tracked) -> None:
    moved = tracked.settings.tracking.model_copy(update={"uri": "sqlite:////proc/nowhere/mlflow.db"})
    with pytest.raises(WorkspaceError, match="can't be used"):
        mlflow_runs.project(tracked.settings.model_copy(update={"tracking": moved}), tracked.ledger)


def test_store_is_in_its_place_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's migrations are no transactions in SQLite: between two of them a store is none."""
    from mlflow.store.db import utils

    def cut_off(engine: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils, "_upgrade_db", cut_off)
        with pytest.raises(KeyboardInterrupt):
            mlflow_client.open_store(f"sqlite:///{tmp_path}/first/mlflow.db")
    assert not (tmp_path / "first/mlflow.db").exists()
    assert (tmp_path / "first/mlflow.db.partial").exists()

    (tmp_path / "second").mkdir()
    (tmp_path / "first/mlflow.db.partial").rename(tmp_path / "second/mlflow.db.partial")
    client = mlflow_client.open_store(f"sqlite:///{tmp_path}/second/mlflow.db")
    assert [found.name for found in client.search_experiments()] == ["Default"]
    assert not (tmp_path / "second/mlflow.db.partial").exists()
