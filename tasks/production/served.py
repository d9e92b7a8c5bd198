"""The ONNX file that a server of a registered version would load, asked without MLflow's loader.

That loader would run whatever the version's description names: code, pickles, a model that is a script. Here the
description has to name one ONNX file, MLflow's own loader of such files, and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pruning.errors import ExportError, SettingsError, WorkspaceError
from pruning.files.export import open_session
from pruning.files.json_files import first_fault
from tasks.params import yaml_file
from tasks.params.settings import Settings
from tasks.production.artifacts import Artifacts, is_plain
from tasks.production.registry import Version
from tasks.production.store import open_store, shown, store_faults

_DESCRIPTION = "MLmodel"
_SERVED = "served.onnx"


def fetch_served(settings: Settings, version: Version, into: Path) -> Path:
    """Download the ONNX file that a server of the registered model would load, and nothing else; nothing is executed.

    Raises:
        WorkspaceError: A server would run something else than an ONNX file, or it isn't there.
    """
    what = f"version {version.number} of the model {settings.tracking.model_name!r}"
    with store_faults(settings):
        client = open_store(settings.tracking.uri)
        place = client.get_model_version_download_uri(settings.tracking.model_name, version.number)
        artifacts = Artifacts(str(place))
        if not artifacts.bring(_DESCRIPTION, into / _DESCRIPTION, yaml_file.MOST_BYTES):
            raise WorkspaceError(
                f"{what} has no readable {_DESCRIPTION} at {place}; bring it back, or delete that version"
            )
        try:
            name = _onnx_file_of(yaml_file.read_mapping(into / _DESCRIPTION))
        except (SettingsError, ValidationError) as error:
            why = first_fault(error) if isinstance(error, ValidationError) else str(error)
            raise WorkspaceError(
                f"{what} is no plain ONNX model: its {_DESCRIPTION} says what would run other code where it is loaded "
                f"({why}). It was not loaded; delete that version"
            ) from error
        if not artifacts.bring(name, into / _SERVED):
            raise WorkspaceError(f"{what} has no file {name!r} at {shown(str(place))}; bring it back, or delete it")
    return into / _SERVED


def answers_of(settings: Settings, version: Version, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what ONNX Runtime answers by the file that a server of the registered model would load.

    MLflow's own loader isn't asked: it would run whatever code stands beside the file.

    Raises:
        WorkspaceError: There is no such file, or a server would run something else.
        ExportError: The file can't be loaded, or doesn't take the inputs.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(fetch_served(settings, version, Path(folder)))
        try:
            return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])
        except Exception as error:  # ONNX Runtime's own errors have no public root but Exception
            raise ExportError(
                f"version {version.number}: its registered ONNX file doesn't take inputs {inputs.shape}: {error}"
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
    """Return the name of the ONNX file in a model's folder, if MLflow's loader of such files is all that is named."""
    found = _Flavours.model_validate(description.get("flavors"))
    name = found.python_function.data
    if name != found.onnx.data or not is_plain(name) or not name.endswith(".onnx"):
        raise SettingsError(f"its data are {name[:100]!r} and {found.onnx.data[:100]!r}; expected one .onnx file")
    return name
