"""MLflow's runs, which mirror the ledger; the registry of models is in `mlflow_models`.

Everything is looked up before it is written (runs by the trajectory's fingerprint), so each function can be called
again, after a kill or on a new store, with the same result. Runs are addressed by id, because MLflow's active run
belongs to one thread.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tasks.config.schema import Settings
from tasks.fingerprint import shaping_sections
from tasks.loop.ledger import Ledger, Row
from tasks.models import ModelMetrics, loss_and_metric, name_of_metric
from tasks.registry.mlflow_client import ARTIFACTS, is_server, open_store, store_faults

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

FINGERPRINT = "secateur.fingerprint"
KILLED, FAILED = "KILLED", "FAILED"
_LONGEST_PARAM, _MOST_PARAMS = 6000, 100  # MLflow's own limits, per value and per batch


def project(settings: Settings, ledger: Ledger) -> str:
    """Bring the run of a trajectory up to date with its ledger.

    Returns:
        The run's id.

    Raises:
        WorkspaceError: The store can't be used.
    """
    with store_faults(settings):
        client = open_store(settings.tracking.uri)
        run = _find_run(client, settings, ledger.fingerprint)
        run_id: str = run.info.run_id
        if run.info.status in (KILLED, FAILED):
            client.update_run(run_id, "RUNNING")
        _log_settings(client, run, settings)
        seen = {point.step for point in client.get_metric_history(run_id, "accepted")}
        score = key_of_score(settings)
        metrics = [metric for row in ledger.rows if row.attempt not in seen for metric in _metrics(row, score)]
        if metrics:
            client.log_batch(run_id, metrics=metrics)
    return run_id


def end_early(settings: Settings, fingerprint: str, status: str) -> None:
    """Set the status of a trajectory's run, if MLflow still shows it as running.

    Args:
        settings: Of the run.
        fingerprint: The trajectory's.
        status: KILLED or FAILED.

    Raises:
        WorkspaceError: The store can't be used.
    """
    with store_faults(settings):
        client = open_store(settings.tracking.uri)
        experiment = client.get_experiment_by_name(settings.tracking.experiment)
        runs = client.search_runs([experiment.experiment_id], _having(fingerprint)) if experiment else []
        for run in runs:
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, status)


def _find_run(client: MlflowClient, settings: Settings, fingerprint: str) -> Run:
    name = settings.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        experiment = found.experiment_id
    else:
        experiment = client.create_experiment(name, artifact_location=_artifacts(settings))
    runs = client.search_runs([experiment], _having(fingerprint), max_results=1)
    if runs:
        return runs[0]
    return client.create_run(experiment, run_name=_run_name(settings), tags={FINGERPRINT: fingerprint})


def _having(fingerprint: str) -> str:
    return f"tags.`{FINGERPRINT}` = '{fingerprint}'"


def _artifacts(settings: Settings) -> str | None:
    """Return where an experiment's files go; None lets the server decide."""
    uri, place, name = settings.tracking.uri, settings.tracking.artifacts, settings.tracking.experiment
    if place is not None:
        return f"{place.rstrip('/')}/{name}"
    return None if is_server(uri) else (ARTIFACTS / name).absolute().as_uri()


def _run_name(settings: Settings) -> str:
    return f"{settings.subject}, {settings.prune.chosen_by}"


def _log_settings(client: MlflowClient, run: Run, settings: Settings) -> None:
    """Log what shapes the trajectory as parameters, which MLflow never changes; what only stops it becomes tags."""
    from mlflow.entities import Param, RunTag

    from tasks.stage_table import STOP_ONLY

    flat = _flatten(settings.model_dump(mode="json", include=set(shaping_sections(settings))))
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


def key_of_score(settings: Settings) -> str:
    """Return the key under which MLflow has the score: the metric's name, "accuracy", "mean_IoU"."""
    name = loss_and_metric(settings)[1].measure(name_of_metric(settings)).name
    key = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_")
    return "score" if key in ("", *ModelMetrics.model_fields, "goal", "reached", "accepted") else key


def _metrics(row: Row, score: str) -> list[Any]:
    """Return one point for each figure; the score by its metric's name, the step is the attempt, the time 0."""
    from mlflow.entities import Metric

    values: dict[str, float] = {"goal": row.goal, "reached": row.reached, "accepted": float(row.accepted)}
    if row.measured is not None:
        values |= row.measured.model_dump(exclude_none=True)
        values[score] = values.pop("score")
    if row.blocks:
        values["blocks_removed"] = len(row.blocks)
    return [Metric(key, float(value), 0, row.attempt) for key, value in values.items()]
