"""Register a finished pipeline as a version of the model in MLflow.

A version is looked up by the hash of its ONNX file first, and created with all its tags in one step, so a
registration can be repeated after a kill.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.containers import INPUT, OUTPUT, Inputs
from pruning.io.onnx import feeds_of, open_session
from tasks.config.schema import Settings
from tasks.data import read_description, read_example
from tasks.loop.ledger import Ledger, read_ledger
from tasks.registry.git_snapshot import Source, snapshot
from tasks.registry.manifest import FILE, make_record
from tasks.registry.mlflow_client import lookup, open_store, quoted, store_faults
from tasks.registry.mlflow_models import CANDIDATE, ONNX_HASH, RECORD_HASH, SERVED, give_alias, record_place, set_tags
from tasks.registry.mlflow_runs import FINGERPRINT, project
from tasks.registry.served import DENSE, choose_served, file_of
from tasks.reporting import report
from tasks.stages import analyze
from tasks.workspace import DEFAULT_ROOT, Workspace

if TYPE_CHECKING:
    import onnxruntime
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)


def register(
    settings: Settings, workspace: Workspace, params: Path, content: bytes, code: Callable[[], Source | None] = snapshot
) -> str | None:
    """Record a finished pipeline: pictures with the run, the served ONNX file as a version with the alias `candidate`.

    If no attempt was accepted, the dense model is the baseline: then only the run is recorded, without a version.

    Args:
        settings: Of the run.
        workspace: Where the pipeline has finished.
        params: The file that the settings were read from.
        content: Of that file, as it was read.
        code: Returns the code as it was when the run began.

    Returns:
        The version; None if no attempt was accepted. A file that is registered already keeps its version.

    Raises:
        WorkspaceError: The store can't be used.
    """
    ledger = read_ledger(workspace.folder("iterations"))
    run_id = project(settings, ledger)
    served = choose_served(settings, workspace) if ledger.accepted else DENSE
    path = file_of(workspace, served)
    onnx_hash = sha256(path.read_bytes()).hexdigest()
    name = settings.tracking.model_name
    with store_faults(settings):
        client = open_store(settings.tracking.uri)
        if not ledger.accepted:
            _finish(client, run_id)
            return None
        known = client.search_model_versions(f"name = {quoted(name)} and tags.`{ONNX_HASH}` = '{onnx_hash}'")
        if known and RECORD_HASH in known[0].tags:
            version = str(known[0].version)
        else:
            _log_pictures(client, run_id, workspace)
            tags = {**_lineage(settings, workspace, ledger), ONNX_HASH: onnx_hash, SERVED: served}
            if (source := code()) is None:
                _log.warning(
                    "the version is registered without its code: there is no Git repository here, or no commit in it. "
                    "`git add` and `git commit` your files before a run, so that `restore` can bring them back"
                )
            tags |= _log_record(client, run_id, settings, workspace, params, content, path, source)
            if known:  # registered before records were kept
                version = str(known[0].version)
                set_tags(client, name, version, tags)
            else:
                version = _create_version(client, run_id, settings, workspace, path, tags)
        give_alias(client, name, CANDIDATE, version)
        _finish(client, run_id)
    return version


def _finish(client: MlflowClient, run_id: str) -> None:
    if client.get_run(run_id).info.status != "FINISHED":
        client.set_terminated(run_id)


def _log_pictures(client: MlflowClient, run_id: str, workspace: Workspace) -> None:
    folder = workspace.folder(report.FOLDER)
    drawn = [folder / name for name in report.PICTURES if (folder / name).exists()]  # curves may be missing
    pictures = [*drawn, folder / report.PAGE, folder / report.SUMMARY]
    tables = [workspace.folder(analyze.FOLDER) / analyze.TABLE, workspace.folder("iterations") / "ledger.json"]
    for path in (*pictures, *tables, workspace.folder("dense") / "plan.json"):
        client.log_artifact(run_id, str(path))


def _log_record(
    client: MlflowClient,
    run_id: str,
    settings: Settings,
    workspace: Workspace,
    params: Path,
    content: bytes,
    served: Path,
    code: Source | None,
) -> dict[str, str]:
    """Log the record, and return the tags that lead to it."""
    with tempfile.TemporaryDirectory() as folder:
        record = make_record(settings, workspace, params, content, Path(folder), code, served)
        client.log_artifacts(run_id, folder, record_place(sha256(served.read_bytes()).hexdigest()))
        digest = sha256((Path(folder) / FILE).read_bytes()).hexdigest()
    return {RECORD_HASH: digest, "secateur.git_commit": record.commit or "none"}


def _create_version(
    client: MlflowClient, run_id: str, settings: Settings, workspace: Workspace, path: Path, tags: Mapping[str, str]
) -> str:
    import mlflow
    import onnx
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on pinning requirements, which are given
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.onnx.log_model(
                onnx.load(path),
                name="model",
                signature=_signature(open_session(path), read_example(workspace)),
                pip_requirements=[f"onnxruntime=={onnxruntime.__version__}", f"onnx=={onnx.__version__}"],
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
    name = settings.tracking.model_name
    if lookup(client.get_registered_model, name) is None:
        client.create_registered_model(name)
    made = client.create_model_version(name, logged.model_uri, run_id, tags=dict(tags), model_id=logged.model_id)
    return str(made.version)


def _signature(session: onnxruntime.InferenceSession, example: Inputs) -> ModelSignature:
    """Return what a server checks requests against: types and sizes of the inputs and outputs, −1 for a dynamic one.

    Where there are several, or they have names, each is named; else requests may give the values alone.
    """
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import Schema, TensorSpec

    feeds, names = feeds_of(session, example), [entry.name for entry in session.get_outputs()]
    answers = dict(zip(names, session.run(names, feeds), strict=True))
    if (list(feeds), names) == ([INPUT], [OUTPUT]) and all(isinstance(one, int) for one in _sizes(session)[INPUT][1:]):
        return infer_signature(feeds[INPUT], answers[OUTPUT])
    sizes = _sizes(session)
    schemas = [
        Schema(
            [TensorSpec(one.dtype, (-1, *sizes[name][1:]) if sizes[name] else (), name) for name, one in part.items()]
        )
        for part in (feeds, answers)
    ]
    return ModelSignature(inputs=schemas[0], outputs=schemas[1])


def _sizes(session: onnxruntime.InferenceSession) -> dict[str, list[int]]:
    """Return the shapes of a file's inputs and outputs, −1 for what is dynamic."""
    entries = (*session.get_inputs(), *session.get_outputs())
    return {one.name: [size if isinstance(size, int) else -1 for size in one.shape] for one in entries}


def _lineage(settings: Settings, workspace: Workspace, ledger: Ledger) -> dict[str, str]:
    """Return the tags that lead from a version back to the exact files it came from."""
    lock = Path("dvc.lock") if workspace.root == DEFAULT_ROOT else None  # DVC versions no other
    weights = workspace.folder("dense") / "weights.safetensors"
    return {
        FINGERPRINT: ledger.fingerprint,
        "secateur.data_fingerprint": read_description(workspace).fingerprint,
        "secateur.weights_sha256": sha256(weights.read_bytes()).hexdigest(),
        "secateur.dvc_lock_sha256": sha256(lock.read_bytes()).hexdigest() if lock and lock.exists() else "none",
        "secateur.model_factory": settings.model.factory,
    }
