"""Use a registered version without trusting it: its settings, the functions that they name, its ONNX file.

Anyone who can write to the registry can write a version's settings. A function named there is called only if it is

    built in                a loss or metric by its short name, or something of `zoo`
    named by us too         in the settings of the command
    committed               its module is a file of this repository, and a settings file names it: Git tracks both at
                            the commit that the version was made from

All other settings, such as data, paths, machines and stores, are those of the command.

Its ONNX files are loaded and run in a process of their own first, of bounded time and memory. MLflow's own loader would
run whatever the version's description names: code, pickles, a model that is a script. Here the description has to name
one ONNX file, MLflow's loader of ONNX files, and nothing else.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pruning.errors import ExportError, SettingsError, WorkspaceError
from pruning.io.files import first_fault
from pruning.io.onnx import open_session
from pruning.io.onnx_sandbox import Feeds, try_in_sandbox
from tasks.config import yaml_io
from tasks.config.errors import describe, with_new_names
from tasks.config.schema import Settings
from tasks.config.training_schema import Model, Task, Training
from tasks.config.types import LOSSES, METRICS, TASKS
from tasks.config.yaml_io import read_mapping
from tasks.registry import git_snapshot
from tasks.registry.mlflow_client import Artifacts, is_plain, open_store, shown, store_faults
from tasks.registry.mlflow_models import Version

_REFERENCE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*")
_ON_TRUST = ("allow_download", "trust_remote_code")
_ZOO = re.compile(r"zoo(\.\w+)*:\w+")


def settings_to_measure_by(own: Settings, params: Path, commit: str | None) -> Settings:
    """Return the settings of the command with the model, loss and metric of a version.

    Args:
        own: Of the command.
        params: The version's settings file.
        commit: Git's commit that the version was made from; None outside Git.

    Raises:
        WorkspaceError: They name a function that isn't trusted. Nothing was imported.
        SettingsError: The file is malformed.
    """
    found = with_new_names(read_mapping(params))
    model, training, task = (_section(found, name) for name in ("model", "training", "task"))
    chosen = {name: model[name] for name in _OF_THE_MODEL if name in model}
    _refuse_code_and_downloads(model, own)
    judged = {name: training.get(name) for name in ("loss", "metric", "metric_key")}
    asked = {"model.factory": chosen.get("factory"), "task.name": task.get("name", Task.model_fields["name"].default)}
    asked |= {f"training.{name}": judged[name] for name in ("loss", "metric")}
    known = {own.model.factory, own.task.name, own.training.loss, own.training.metric, None}
    known |= {name for names in (TASKS, LOSSES, METRICS) for pair in names.items() for name in pair}
    for place, reference in asked.items():
        if reference not in known:
            _refuse_foreign(place, reference, commit)
    try:
        return own.model_copy(
            update={
                "model": Model.model_validate(chosen),
                "task": Task.model_validate(task),
                "training": Training.model_validate({**judged, "batch_size": own.training.batch_size}),
            }
        )
    except ValidationError as error:
        raise WorkspaceError(f"the version's settings can't be used: {'; '.join(describe(error, Settings))}") from error


_OF_THE_MODEL = ("factory", "kwargs", "from_pretrained", "auto_class", "revision", *_ON_TRUST)


def _refuse_code_and_downloads(model: Mapping[str, Any], own: Settings) -> None:
    """Refuse a folder whose code would run, or that would be downloaded, unless our settings say the same of it."""
    for name in _ON_TRUST:
        same = own.model.from_pretrained == model.get("from_pretrained") and getattr(own.model, name)
        if model.get(name) and not same:
            raise WorkspaceError(
                f"the version's settings set model.{name} for {str(model.get('from_pretrained'))[:100]!r}; nothing was "
                "read. If you trust it, give settings that say so too with --params FILE"
            )


def _section(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = found.get(name, {})
    if not isinstance(section, dict):
        raise WorkspaceError(f"the version's settings can't be used: {name} is a {type(section).__name__}, no mapping")
    return section


def _refuse_foreign(place: str, reference: Any, commit: str | None) -> None:
    """Refuse a function that is neither built in nor committed."""
    if isinstance(reference, str) and _ZOO.fullmatch(reference):
        return
    refusal = f"the version's settings name {str(reference)[:100]!r} for {place}, which was not imported: "
    remedy = "; if you trust it, give settings that name it too with --params FILE, or delete that version"
    if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
        raise WorkspaceError(f"{refusal}it is no import string{remedy}")
    if commit is None:
        raise WorkspaceError(f"{refusal}the version was made outside Git, so nothing vouches for it{remedy}")
    module = reference.partition(":")[0].replace(".", "/")
    if not git_snapshot.tracks(commit, f"{module}.py", f"{module}/__init__.py"):
        raise WorkspaceError(f"{refusal}Git tracks no such module at the version's commit {commit[:12]} here{remedy}")
    if not git_snapshot.mentions(commit, reference, "*.yaml", "*.yml"):
        raise WorkspaceError(
            f"{refusal}no settings file that Git tracks at the version's commit {commit[:12]} names it{remedy}"
        )


_DESCRIPTION = "MLmodel"
_SERVED = "served.onnx"


def fetch_served(settings: Settings, version: Version, into: Path) -> Path:
    """Download the ONNX file that a server of the registered model would load; nothing else is loaded or executed.

    Raises:
        WorkspaceError: A server would run something other than an ONNX file, or the file is missing.
    """
    what = f"version {version.number} of the model {settings.tracking.model_name!r}"
    with store_faults(settings):
        client = open_store(settings.tracking.uri)
        place = client.get_model_version_download_uri(settings.tracking.model_name, version.number)
        artifacts = Artifacts(str(place))
        if not artifacts.bring(_DESCRIPTION, into / _DESCRIPTION, yaml_io.MOST_BYTES):
            raise WorkspaceError(
                f"{what} has no readable {_DESCRIPTION} at {place}; bring it back, or delete that version"
            )
        try:
            name = _onnx_file_of(yaml_io.read_mapping(into / _DESCRIPTION))
        except (SettingsError, ValidationError) as error:
            why = first_fault(error) if isinstance(error, ValidationError) else str(error)
            raise WorkspaceError(
                f"{what} is no plain ONNX model: its {_DESCRIPTION} names code that would run when it is loaded "
                f"({why}). It was not loaded; delete that version"
            ) from error
        if not artifacts.bring(name, into / _SERVED):
            raise WorkspaceError(f"{what} has no file {name!r} at {shown(str(place))}; bring it back, or delete it")
    return into / _SERVED


def refuse_what_hangs(version: Version, path: Path, batches: Sequence[Feeds] = ()) -> None:
    """Refuse an ONNX file of a version that can't be loaded, or run on batches, in bounded time and in free memory.

    Raises:
        ExportError: It can't; it was tried in a process of its own.
    """
    fault = try_in_sandbox(path, batches, most_bytes=psutil.virtual_memory().available)
    if fault is not None:
        raise ExportError(f"version {version.number}: its ONNX file {path.name} can't be used: {fault}")


def answers_of(settings: Settings, version: Version, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Return ONNX Runtime's answers, by name, with the file that a server of the registered model would load.

    MLflow's own loader isn't used: it would run whatever code is stored beside the file.

    Raises:
        WorkspaceError: The file is missing, or a server would run something else.
        ExportError: The file can't be loaded, or doesn't take the inputs.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = fetch_served(settings, version, Path(folder))
        refuse_what_hangs(version, path, [feeds])
        session = open_session(path)
        names = [entry.name for entry in session.get_outputs()]
        try:
            return dict(zip(names, map(np.asarray, session.run(names, dict(feeds))), strict=True))
        except Exception as error:  # ONNX Runtime's own errors have no public root but Exception
            given = ", ".join(f"{name} {list(one.shape)}" for name, one in feeds.items())
            raise ExportError(
                f"version {version.number}: its registered ONNX file doesn't take inputs {given}: {error}"
            ) from error


class _OnnxFlavour(BaseModel):
    data: str
    code: None = None


class _PyfuncFlavour(BaseModel):
    model_config = ConfigDict(extra="forbid")

    loader_module: Literal["mlflow.onnx"]
    data: str
    env: Any = None
    python_version: Any = None
    code: None = None


class _Flavours(BaseModel):
    model_config = ConfigDict(extra="forbid")

    onnx: _OnnxFlavour
    python_function: _PyfuncFlavour


def _onnx_file_of(description: Mapping[str, Any]) -> str:
    """Return the name of the ONNX file in a model's folder; the description may name only MLflow's ONNX loader."""
    found = _Flavours.model_validate(description.get("flavors"))
    name = found.python_function.data
    if name != found.onnx.data or not is_plain(name) or not name.endswith(".onnx"):
        raise SettingsError(f"its data are {name[:100]!r} and {found.onnx.data[:100]!r}; expected one .onnx file")
    return name
