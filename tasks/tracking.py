"""The only file that knows MLflow: a projection of the ledger, and the registry of models.

Everything here is looked up before it is written (runs by the trajectory's fingerprint, versions by the hash of their
ONNX file), so that any of it can be called again, after a kill or on a store that was lost, and the store comes out the
same. Runs are addressed by their id: MLflow's active run belongs to one thread and means nothing in another.
"""

from __future__ import annotations

import logging
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.errors import WorkspaceError
from tasks import analyze, export, report
from tasks.data import read_description, read_inputs
from tasks.ledger import Ledger, Row, read_ledger
from tasks.settings import Settings
from tasks.workspace import DEFAULT_ROOT, Workspace

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

ALIAS = "candidate"
FINGERPRINT = "secateur.fingerprint"
ONNX_HASH = "secateur.onnx_sha256"
ARTIFACTS = Path("mlartifacts")
_SQLITE = "sqlite:///"
_LONGEST_PARAM, _MOST_PARAMS = 6000, 100  # MLflow's own limits, per value and per batch


def project(settings: Settings, ledger: Ledger) -> str:
    """Bring the run of a trajectory up to date with its ledger.

    Returns:
        The run's id.

    Raises:
        WorkspaceError: The store can't be used.
    """
    with _faults(settings):
        client = _client(settings.tracking.uri)
        run = _find_run(client, settings, ledger.fingerprint)
        run_id: str = run.info.run_id
        _log_settings(client, run, settings)
        seen = {point.step for point in client.get_metric_history(run_id, "accepted")}
        metrics = [metric for row in ledger.rows if row.attempt not in seen for metric in _metrics(row)]
        if metrics:
            client.log_batch(run_id, metrics=metrics)
    return run_id


def register(settings: Settings, workspace: Workspace) -> str:
    """Record a finished pipeline: pictures and plan with the run, the ONNX file as a version, alias `candidate`.

    Returns:
        The version. A file that is registered already keeps its version.

    Raises:
        WorkspaceError: The store can't be used.
    """
    ledger = read_ledger(workspace.folder("iterations"))
    run_id = project(settings, ledger)
    path = workspace.folder(export.FOLDER) / export.FILES["dense"]
    onnx_hash = sha256(path.read_bytes()).hexdigest()
    name = settings.tracking.model_name
    with _faults(settings):
        client = _client(settings.tracking.uri)
        version = _find_version(client, name, onnx_hash)
        if version is None:
            _log_artifacts(client, run_id, workspace)
            version = _create_version(client, run_id, settings, workspace, path)
            for key, value in {**_lineage(settings, workspace, ledger), ONNX_HASH: onnx_hash}.items():
                client.set_model_version_tag(name, version, key, value)
        aliases = client.get_registered_model(name).aliases
        if str(aliases.get(ALIAS)) != str(version):
            client.set_registered_model_alias(name, ALIAS, version)
        if client.get_run(run_id).info.status != "FINISHED":
            client.set_terminated(run_id)
    return version


@cache
def _client(uri: str) -> MlflowClient:
    """Open the store; the first time, tables are made."""
    import mlflow
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    place = absolute(uri)
    mlflow.set_tracking_uri(place)
    mlflow.set_registry_uri(place)
    return MlflowClient(place, place)


def absolute(uri: str) -> str:
    """Make a SQLite address independent of the folder that a process runs in; leave any other as it is."""
    if not uri.startswith(_SQLITE) or uri.startswith(_SQLITE + "/"):
        return uri
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}"


def is_server(uri: str) -> bool:
    """Say whether an address is that of an MLflow server, and not of a store itself."""
    return uri.startswith(("http://", "https://"))


def _find_run(client: MlflowClient, settings: Settings, fingerprint: str) -> Run:
    name = settings.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        experiment = found.experiment_id
    else:
        experiment = client.create_experiment(name, artifact_location=_artifacts(settings))
    runs = client.search_runs([experiment], f"tags.`{FINGERPRINT}` = '{fingerprint}'", max_results=1)
    if runs:
        return runs[0]
    return client.create_run(experiment, run_name=_run_name(settings), tags={FINGERPRINT: fingerprint})


def _artifacts(settings: Settings) -> str | None:
    """Return where an experiment's files go; None leaves it to the server."""
    uri, place, name = settings.tracking.uri, settings.tracking.artifacts, settings.tracking.experiment
    if place is not None:
        return f"{place.rstrip('/')}/{name}"
    return None if is_server(uri) else (ARTIFACTS / name).absolute().as_uri()


def _run_name(settings: Settings) -> str:
    model, data = (factory.partition(":")[2] for factory in (settings.model.factory, settings.data.factory))
    return f"{model} on {data}, {settings.prune.criterion}"


def _log_settings(client: MlflowClient, run: Run, settings: Settings) -> None:
    """Log what shapes the trajectory as parameters; what only stops it can change, so it becomes tags."""
    from mlflow.entities import Param, RunTag

    from tasks.stages import STOP_ONLY

    flat = _flatten(settings.model_dump(mode="json", exclude={"tracking"}))
    stops = {f"prune.{name}" for name in STOP_ONLY}
    known = run.data.params
    params = [Param(key, value) for key, value in flat.items() if key not in stops and key not in known]
    tags = [RunTag(key, flat[key]) for key in sorted(stops) if run.data.tags.get(key) != flat[key]]
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run.info.run_id, params=params[start : start + _MOST_PARAMS])
    if tags:
        client.log_batch(run.info.run_id, tags=tags)


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        parts = (_flatten(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
        return {key: text for part in parts for key, text in part.items()}
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return _flatten({str(position): inner for position, inner in enumerate(value)}, prefix)
    return {prefix: str(value)[:_LONGEST_PARAM]}


def _metrics(row: Row) -> list[Any]:
    """Return one point for each figure; the step is the attempt, and the time is left out of it."""
    from mlflow.entities import Metric

    values: dict[str, float] = {"goal": row.goal, "reached": row.reached, "accepted": float(row.accepted)}
    if row.measured is not None:
        values |= row.measured.model_dump(exclude_none=True)
    return [Metric(key, float(value), 0, row.attempt) for key, value in values.items()]


def _log_artifacts(client: MlflowClient, run_id: str, workspace: Workspace) -> None:
    pictures = [workspace.folder(report.FOLDER) / name for name in (*report.PICTURES, report.PAGE, report.SUMMARY)]
    tables = [workspace.folder(analyze.FOLDER) / analyze.TABLE, workspace.folder("iterations") / "ledger.json"]
    for path in (*pictures, *tables, workspace.folder("dense") / "plan.json"):
        client.log_artifact(run_id, str(path))


def _find_version(client: MlflowClient, name: str, onnx_hash: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{ONNX_HASH}` = '{onnx_hash}'")
    return str(found[0].version) if found else None


def _create_version(client: MlflowClient, run_id: str, settings: Settings, workspace: Workspace, path: Path) -> str:
    import mlflow
    import onnx
    import onnxruntime
    from mlflow.models import infer_signature

    example = read_inputs(workspace, "validation")[:2].numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: example})[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on pinning requirements, which are given
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.onnx.log_model(
                onnx.load(path),
                name="model",
                signature=infer_signature(example, outputs),
                pip_requirements=[f"onnxruntime=={onnxruntime.__version__}", f"onnx=={onnx.__version__}"],
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
    name = settings.tracking.model_name
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    created = client.create_model_version(name, logged.model_uri, run_id, model_id=logged.model_id)
    return str(created.version)


def _lineage(settings: Settings, workspace: Workspace, ledger: Ledger) -> dict[str, str]:
    """Return what leads from a version back to the exact files that it came from."""
    lock = Path("dvc.lock") if workspace.root == DEFAULT_ROOT else None  # DVC versions no other
    weights = workspace.folder("dense") / "weights.safetensors"
    return {
        FINGERPRINT: ledger.fingerprint,
        "secateur.data_fingerprint": read_description(workspace).fingerprint,
        "secateur.weights_sha256": sha256(weights.read_bytes()).hexdigest(),
        "secateur.dvc_lock_sha256": sha256(lock.read_bytes()).hexdigest() if lock and lock.exists() else "none",
        "secateur.git_commit": _git_commit(),
        "secateur.model_factory": settings.model.factory,
    }


def _git_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "none"


@contextmanager
def _faults(settings: Settings) -> Iterator[None]:
    """Turn what MLflow raises into one message that names the store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow lets some of the store's errors through as they are

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise WorkspaceError(
            f"MLflow's store {absolute(settings.tracking.uri)} can't be used: {str(error).splitlines()[0]}. Nothing "
            "that was trained is lost: the ledger holds it; mend tracking.uri and run the same command again"
        ) from error
