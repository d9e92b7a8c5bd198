"""MLflow's registry of models: versions with their record, aliases, tags.

Aliases: `candidate` is the latest result, `production` is served now, `previous` was served before.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pruning.errors import WorkspaceError
from pruning.io.files import MOST_BYTES, JsonError, checked_json, parse_json
from tasks.config.schema import Settings
from tasks.registry.manifest import FILE, PATCH, Record
from tasks.registry.mlflow_client import Artifacts, all_pages, lookup, open_store, quoted, store_faults
from tasks.terminal import command_line

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

log = logging.getLogger("secateur")

CANDIDATE, PRODUCTION, PREVIOUS = "candidate", "production", "previous"
ONNX_HASH = "secateur.onnx_sha256"
SERVED = "secateur.served"
RECORD_HASH = "secateur.record_sha256"


@dataclass(frozen=True)
class Version:
    """A version of the registered model.

    Attributes:
        number: MLflow's, from "1".
        run_id: The run that it came from.
        tags: Its tags.
    """

    number: str
    run_id: str
    tags: Mapping[str, str]


def find(settings: Settings, *, alias: str | None = None, number: str | None = None) -> Version:
    """Return the version that an alias or a number names.

    Raises:
        WorkspaceError: There is none, or the store can't be used.
    """
    found = at(settings, alias) if alias is not None else _numbered(settings, str(number))
    if found is None:
        what = f"version with the alias {alias!r}" if alias is not None else f"version {number}"
        known = [version.number for version in versions(settings)]
        there = f"there are: {', '.join(known)}" if known else f"none is registered; run {command_line('run')}"
        raise WorkspaceError(f"the model {settings.tracking.model_name!r} has no {what}; {there}")
    return found


def _numbered(settings: Settings, number: str) -> Version | None:
    if not (number.isascii() and number.isdecimal()):
        return None
    with store_faults(settings):
        found = lookup(open_store(settings.tracking.uri).get_model_version, settings.tracking.model_name, number)
    return as_version(found) if found else None


def at(settings: Settings, alias: str) -> Version | None:
    """Return the version with an alias; None if there is none."""
    name = settings.tracking.model_name
    with store_faults(settings):
        client = open_store(settings.tracking.uri)
        model = lookup(client.get_registered_model, name)
        if model is None or alias not in model.aliases:
            return None
        found = lookup(client.get_model_version, name, str(model.aliases[alias]))
    return as_version(found) if found else None


def versions(settings: Settings) -> list[Version]:
    """Return all versions, oldest first."""
    asked = f"name = {quoted(settings.tracking.model_name)}"
    with store_faults(settings):
        client = open_store(settings.tracking.uri)
        found = all_pages(lambda token: client.search_model_versions(asked, page_token=token))
    return [as_version(version) for version in sorted(found, key=lambda version: int(version.version))]


def assign(settings: Settings, alias: str, version: str) -> None:
    """Give an alias to a version; any other version loses it."""
    with store_faults(settings):
        give_alias(open_store(settings.tracking.uri), settings.tracking.model_name, alias, version)


def withdraw(settings: Settings, alias: str) -> None:
    """Take an alias away."""
    with store_faults(settings):
        open_store(settings.tracking.uri).delete_registered_model_alias(settings.tracking.model_name, alias)


def tag(settings: Settings, version: str, tags: Mapping[str, str], without: Iterable[str] = ()) -> None:
    """Set tags of a version, and remove others."""
    with store_faults(settings):
        client, name = open_store(settings.tracking.uri), settings.tracking.model_name
        there = client.get_model_version(name, version).tags
        set_tags(client, name, version, tags)
        for key in set(without) & there.keys() - tags.keys():
            client.delete_model_version_tag(name, version, key)


def fetch_record(settings: Settings, version: Version, into: Path) -> Record:
    """Download a version's record and the files it names that MLflow keeps; no hash is compared.

    Raises:
        WorkspaceError: The record was never made, is missing, was changed, or names something that no record may.
    """
    record, artifacts = _read_record(settings, version, into)
    with store_faults(settings):
        for name in (*record.files, PATCH):
            artifacts.bring(name, into / name)
    return record


def read_record(settings: Settings, version: Version) -> Record:
    """Read the record of a version.

    Raises:
        WorkspaceError: As above.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _read_record(settings, version, Path(folder))[0]


def _read_record(settings: Settings, version: Version, into: Path) -> tuple[Record, Artifacts]:
    if RECORD_HASH not in version.tags:
        raise WorkspaceError(
            f"version {version.number} was registered without a record; run {command_line('run')} with its settings"
        )
    expected, onnx_hash = (_hash_in(version, tag) for tag in (RECORD_HASH, ONNX_HASH))
    place = record_place(onnx_hash)
    source = f"version {version.number}: {place}/{FILE} of MLflow's run {version.run_id}"
    mend = "bring the artefact back from a backup, or delete that version"
    with store_faults(settings):
        run = open_store(settings.tracking.uri).get_run(version.run_id)
        artifacts = Artifacts(str(run.info.artifact_uri), place)
        if not artifacts.bring(FILE, into / FILE, MOST_BYTES):
            raise WorkspaceError(f"{source} isn't there; {mend}")
    content = (into / FILE).read_bytes()
    if sha256(content).hexdigest() != expected:
        raise WorkspaceError(
            f"{source} was changed: sha256 {sha256(content).hexdigest()[:12]}…, expected {expected[:12]}…; {mend}"
        )
    return parse_json(content, Record, source=source, error=WorkspaceError, mend=mend), artifacts


def _hash_in(version: Version, tag: str) -> str:
    found = version.tags.get(tag, "")
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        raise WorkspaceError(
            f"version {version.number} has a malformed tag {tag}: {found[:80]!r} is no sha256; delete that version, or "
            "correct the tag on MLflow's page"
        )
    return found


def read_tag(version: Version, tag: str, form: type[T]) -> T | None:
    """Read a tag that holds JSON; a malformed one is ignored with a warning."""
    try:
        return checked_json(version.tags[tag], form)
    except JsonError as fault:
        log.warning("version %s: its tag %s is malformed (%s) and is ignored", version.number, tag, fault)
        return None


def as_version(found: ModelVersion) -> Version:
    """Convert MLflow's version to ours."""
    return Version(str(found.version), str(found.run_id), dict(found.tags))


def record_place(onnx_hash: str) -> str:
    """Return the path of a version's record among the artefacts of its run."""
    return f"versions/{onnx_hash[:16]}"


def give_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Give an alias to a version that doesn't have it."""
    if str(client.get_registered_model(name).aliases.get(alias)) != version:
        client.set_registered_model_alias(name, alias, version)


def set_tags(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
