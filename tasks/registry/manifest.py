"""A version's record: every file's hash, copies of all files except the data, and answers to a fixed batch.

    versions/<hash of the ONNX file>/      an artefact folder of the run
        record.json                        place in the repository -> sha256; DVC's and Git's ids
        params.yaml                        the settings, byte for byte but for passwords
        artifacts/{baseline,dense,onnx,quantized}/
                                           weights, plans, ONNX files
        batch.safetensors                  inputs, and what the ONNX file answered
        uncommitted.patch                  from Git's commit to the code as it was

Data that were copied are too large for that: DVC has them. Of data that are only named, what describes them is here.
Paths are those of the default workspace, wherever the files really were.

Anyone who can write to the registry can write a record, so one that names anything else is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.numpy import load as parse_safetensors
from safetensors.torch import save as format_safetensors

from pruning.containers import INPUT, OUTPUT
from pruning.io.files import replace_file
from pruning.io.huggingface_folder import COPIED
from pruning.io.onnx import feeds_of, open_session
from tasks.config.schema import Settings
from tasks.data import FOLDER as DATA
from tasks.data import read_description, read_inputs
from tasks.fingerprint import files_of
from tasks.registry import dvc_repo, git_snapshot
from tasks.registry.mlflow_client import MOST_FILES, is_plain, secrets_in
from tasks.workspace import DEFAULT_ROOT, RECORD, Workspace, contents, write_json

FILE = "record.json"
BATCH = "batch.safetensors"
PATCH = "uncommitted.patch"
NUM_ANSWERS = 8
_LOGGED = {"baseline": "baseline", "dense": "transform", "onnx": "export", "quantized": "quantize"}
_PLACES = Workspace(DEFAULT_ROOT)
_DATA_PLACES = (DATA, f"{DEFAULT_ROOT.as_posix()}/{DATA}")
"""The data's folder: the second name is used if a folder of the user's has the first."""


_NO_SETTINGS = ("dvc.yaml", "prefect.yaml")
"""YAML files that name commands."""
_STAGE_FILES = (".json", ".safetensors", ".onnx", *COPIED, ".md")
_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_BROUGHT_ALONG = "weights"
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_GitId = Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]


class Record(BaseModel):
    """What `record.json` holds.

    Attributes:
        params: Path of the settings file.
        files: Path in the repository -> sha256.
        outputs: Folder -> its md5 in DVC, if DVC had it.
        commit: Git's commit that was checked out; None outside Git.
        tree: Git's id of the code; None outside Git, or if the patch wasn't kept because it is too large or holds the
            password of `tracking.uri`.
        patch_sha256: Of the patch with the uncommitted edits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    params: str
    files: dict[str, _Sha256] = Field(max_length=MOST_FILES)
    outputs: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]] = Field(default={}, max_length=100)
    commit: _GitId | None = None
    tree: _GitId | None = None
    patch_sha256: _Sha256 | None = None

    @model_validator(mode="after")
    def _names_what_a_record_may(self) -> Self:
        if (
            not is_plain(self.params)
            or Path(self.params).suffix not in (".yaml", ".yml")
            or self.params in _NO_SETTINGS
        ):
            raise ValueError(f"{self.params!r} is no place of a settings file")
        for place in self.files:
            if place not in (self.params, BATCH) and not _may_be_recorded(place):
                raise ValueError(f"{place!r} is no place that a version's files may have")
        for place in self.outputs:
            if not is_plain(place):
                raise ValueError(f"{place!r} is no folder inside the repository")
        if lacking := {self.params, BATCH} - self.files.keys():
            raise ValueError(f"{sorted(lacking)} are not among its files")
        return self

    def inside(self, folder: str) -> dict[str, str]:
        """Return the files of a stage's folder: place -> sha256."""
        starts = tuple(f"{place}/" for place in _places_of(folder))
        return {place: found for place, found in self.files.items() if place.startswith(starts)}


def make_record(
    settings: Settings,
    workspace: Workspace,
    params: Path,
    content: bytes,
    folder: Path,
    code: git_snapshot.Source | None,
    served: Path,
) -> Record:
    """Fill an empty folder with a version's record.

    Args:
        settings: Of the run.
        workspace: Where the pipeline has finished.
        params: The file that the settings were read from.
        content: Of that file, as it was read.
        folder: Where to write.
        code: As it was when the run began.
        served: The ONNX file that a server loads, whose answers are recorded.

    Raises:
        WorkspaceError: A stage hasn't finished.
        ExportError: The ONNX file is missing or damaged.
    """
    logged = {_place(params, "params.yaml"): params}
    if not read_description(
        workspace
    ).copied:  # of data that are only named a few kilobytes, which nothing else may have
        for file in (*contents(workspace.folder(DATA), "prepare"), RECORD):
            logged[(_PLACES.folder(DATA) / file).as_posix()] = workspace.folder(DATA) / file
    if (brought := settings.model.weights or _folder_of(settings)) is not None:
        given = [path for path in files_of(brought) if path.suffix != ".py"]
        places = [_place(path, "") for path in given]
        if not all(map(_may_be_recorded, places)):
            places = [f"{_BROUGHT_ALONG}/{path.name.lstrip('.')}" for path in given]
        logged |= zip(places, given, strict=True)
    for name, maker in _LOGGED.items():
        for file in (*contents(workspace.folder(name), maker), RECORD):
            logged[(_PLACES.folder(name) / file).as_posix()] = workspace.folder(name) / file
    for place, path in logged.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if path != params:
            shutil.copyfile(path, folder / place)
    secrets = [secret.encode() for secret in secrets_in(settings.tracking.uri)]
    (folder / _place(params, "params.yaml")).write_bytes(_without(secrets, content))
    replace_file(folder / BATCH, _answered_batch(settings, workspace, served))
    files = {place: sha256((folder / place).read_bytes()).hexdigest() for place in (*logged, BATCH)}
    data = {**contents(workspace.folder(DATA), "prepare"), RECORD: _hash(workspace.folder(DATA) / RECORD)}
    files |= {(_PLACES.folder(DATA) / file).as_posix(): found for file, found in data.items()}
    kept = (
        code is not None
        and len(code.patch) <= git_snapshot.LARGEST_PATCH
        and _without(secrets, code.patch) == code.patch
    )
    if code is not None and kept:
        replace_file(folder / PATCH, code.patch)
    record = Record(
        params=_place(params, "params.yaml"),
        files=files,
        outputs=dvc_repo.outputs() if workspace.root == DEFAULT_ROOT else {},
        commit=code.commit if code else None,
        tree=code.tree if code and kept else None,
        patch_sha256=sha256(code.patch).hexdigest() if code and kept else None,
    )
    write_json(folder / FILE, record.model_dump(mode="json"))
    return record


def _folder_of(settings: Settings) -> Path | None:
    """Return the Hugging Face folder that the settings name, if it is one on this machine."""
    named = settings.model.from_pretrained
    return Path(named) if named is not None and Path(named).is_dir() else None


def _places_of(folder: str) -> tuple[str, ...]:
    """Return the paths that a stage's folder may have in the repository."""
    return _DATA_PLACES if folder == DATA else (_PLACES.folder(folder).as_posix(),)


def _may_be_recorded(place: str) -> bool:
    """Say whether a path is allowed for a file of a version: data, results of a stage, or given weights."""
    folders = tuple(f"{folder}/" for name in (DATA, *_LOGGED) for folder in _places_of(name))
    if place.startswith(folders):
        return is_plain(place) and Path(place).suffix in _STAGE_FILES
    brought_along = Path(place).suffix in _WEIGHT_FILES or place.startswith(f"{_BROUGHT_ALONG}/")
    return is_plain(place) and brought_along


def _place(path: Path, otherwise: str) -> str:
    """Return a file's path below the current folder, or another name if it is outside."""
    here, found = Path.cwd().resolve(), path.resolve()
    return found.relative_to(here).as_posix() if found.is_relative_to(here) else otherwise


def _without(secrets: Sequence[bytes], content: bytes) -> bytes:
    for secret in secrets:
        content = content.replace(secret, b"***")
    return content


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _answered_batch(settings: Settings, workspace: Workspace, served: Path) -> bytes:
    """Return inputs and what the served file answered: `inputs` and `answers`, of several `inputs:NAME` for each."""
    inputs = read_inputs(settings, workspace, "validation").first(NUM_ANSWERS).inputs
    session = open_session(served)
    feeds, names = feeds_of(session, inputs), [entry.name for entry in session.get_outputs()]
    answers = dict(zip(names, session.run(names, feeds), strict=True))
    stored = {}
    for what, named in (("inputs", feeds), ("answers", answers)):
        plain = len(named) == 1 and next(iter(named)) in (INPUT, OUTPUT)
        for name, values in named.items():
            stored[what if plain else f"{what}:{name}"] = torch.from_numpy(np.ascontiguousarray(values))
    return format_safetensors(stored)


def read_answered_batch(content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the inputs and answers of a version's record, by name.

    Raises:
        ValueError: It holds none.
    """
    found: dict[str, dict[str, NDArray[Any]]] = {"inputs": {}, "answers": {}}
    plain = {"inputs": INPUT, "answers": OUTPUT}
    for key, values in parse_safetensors(content).items():
        what, _, name = key.partition(":")
        if what in found:
            found[what][name or plain[what]] = values
    if not all(found.values()):
        raise ValueError("it holds no inputs or no answers")
    return found["inputs"], found["answers"]
