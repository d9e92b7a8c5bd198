"""MLflow's registry of models: versions with their record, aliases, tags.

Aliases: `candidate` is the latest result, `production` what is served, `previous` what was served before.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pruning.errors import WorkspaceError
from tasks.params.settings import Settings
from tasks.production.record import FILE, Record
from tasks.production.store import open_store, store_faults

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CANDIDATE, PRODUCTION, PREVIOUS = "candidate", "production", "previous"
ONNX_HASH = "secateur.onnx_sha256"
RECORD_HASH = "secateur.record_sha256"


@dataclass(frozen=True)
class Version:
    """A version of the registered model.

    Attributes:
        number: MLflow's, from "1".
        run_id: The run that it came from.
        tags: What is known of it.
    """

    number: str
    run_id: str
    tags: Mapping[str, str]


def find(settings: Settings, *, alias: str | None = None, number: str | None = None) -> Version:
    """Return the version that an alias or a number names.

    Raises:
        WorkspaceError: There is none, or the store can't be used.
    """
    known = {version.number: version for version in versions(settings)}
    found = at(settings, alias) if alias is not None else known.get(str(number))
    if found is None:
        what = f"version with the alias {alias!r}" if alias is not None else f"version {number}"
        there = f"there are: {', '.join(known)}" if known else "none is registered; run `python -m flows.compress`"
        raise WorkspaceError(f"the model {settings.tracking.model_name!r} has no {what}; {there}")
    return found


def at(settings: Settings, alias: str) -> Version | None:
    """Return the version that has an alias; None where none has."""
    name = settings.tracking.model_name
    with store_faults(settings):
        client = open_store(settings.tracking.uri)
        if not client.search_registered_models(f"name = '{name}'"):
            return None
        if alias not in client.get_registered_model(name).aliases:
            return None
        return _as_version(client.get_model_version_by_alias(name, alias))


def versions(settings: Settings) -> list[Version]:
    """Return all versions, oldest first."""
    with store_faults(settings):
        found = open_store(settings.tracking.uri).search_model_versions(f"name = '{settings.tracking.model_name}'")
    return [_as_version(version) for version in sorted(found, key=lambda version: int(version.version))]


def assign(settings: Settings, alias: str, version: str) -> None:
    """Give an alias to a version, and so take it from any other."""
    with store_faults(settings):
        give_alias(open_store(settings.tracking.uri), settings.tracking.model_name, alias, version)


def withdraw(settings: Settings, alias: str) -> None:
    """Take an alias away."""
    with store_faults(settings):
        open_store(settings.tracking.uri).delete_registered_model_alias(settings.tracking.model_name, alias)


def tag(settings: Settings, version: str, tags: Mapping[str, str], without: Iterable[str] = ()) -> None:
    """Set tags of a version, and remove those that are there no more."""
    with store_faults(settings):
        client, name = open_store(settings.tracking.uri), settings.tracking.model_name
        there = client.get_model_version(name, version).tags
        set_tags(client, name, version, tags)
        for key in set(without) & there.keys() - tags.keys():
            client.delete_model_version_tag(name, version, key)


def fetch_record(settings: Settings, version: Version, into: Path) -> Record:
    """Download the record of a version and what lies beside it.

    Raises:
        WorkspaceError: It was never made, isn't there any more, or was changed.
    """
    expected = version.tags.get(RECORD_HASH)
    if expected is None:
        raise WorkspaceError(
            f"version {version.number} was registered without a record; run `python -m flows.compress` with its "
            "settings"
        )
    place = record_place(version.tags[ONNX_HASH])
    with store_faults(settings), tempfile.TemporaryDirectory(dir=into) as folder:
        client = open_store(settings.tracking.uri)
        found = client.download_artifacts(version.run_id, place, folder)
        for path in list(Path(found).iterdir()):
            path.replace(into / path.name)
    try:
        content = (into / FILE).read_bytes()
        if sha256(content).hexdigest() != expected:
            raise WorkspaceError(
                f"{place}/{FILE} of MLflow's run {version.run_id} was changed: sha256 "
                f"{sha256(content).hexdigest()[:12]}…, expected {expected[:12]}…; bring the artefact back from a backup"
            )
        return Record.model_validate_json(content)
    except (FileNotFoundError, ValidationError) as error:
        raise WorkspaceError(
            f"MLflow's run {version.run_id} has no readable {place}/{FILE} ({type(error).__name__}); bring the "
            "artefact back from a backup"
        ) from error


def answers_of(settings: Settings, version: str, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the registered model answers when it is loaded as a server loads it."""
    import mlflow

    with store_faults(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on the versions of what is installed
        open_store(settings.tracking.uri)
        model = mlflow.pyfunc.load_model(f"models:/{settings.tracking.model_name}/{version}")
        (found, *_) = model.predict(inputs).values()
    return np.asarray(found)


def _as_version(found: ModelVersion) -> Version:
    return Version(str(found.version), str(found.run_id), dict(found.tags))


def record_place(onnx_hash: str) -> str:
    """Return where the record of a version lies among the artefacts of its run."""
    return f"versions/{onnx_hash[:16]}"


def give_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Give an alias to a version that hasn't got it."""
    if str(client.get_registered_model(name).aliases.get(alias)) != version:
        client.set_registered_model_alias(name, alias, version)


def set_tags(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
