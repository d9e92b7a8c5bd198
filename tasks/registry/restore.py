"""Bring back the files of a registered version, each compared with its recorded hash.

A file is taken from the first place that has it with the right hash: MLflow's copies, the workspace, DVC's cache, DVC's
remote. Nothing is written unless everything was found.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pruning.errors import WorkspaceError
from tasks.config.schema import Settings
from tasks.registry import git_snapshot
from tasks.registry.dvc_repo import DvcRepo
from tasks.registry.manifest import BATCH, PATCH, Record
from tasks.registry.mlflow_models import Version, fetch_record
from tasks.workspace import DEFAULT_ROOT, Workspace, write_json, writing

FILE = "restored.json"
PARTS = ("code", "data")
"""Parts that can be left out."""


@dataclass(frozen=True)
class Restored:
    """What was restored.

    Attributes:
        record: The version's record.
        sources: Path of each file -> where it was found.
        code: Git's commit, and whether uncommitted edits came back too; or why there is no code.
    """

    record: Record
    sources: dict[str, str]
    code: str


@dataclass(frozen=True)
class Copy:
    """Some of a version's files, in a temporary folder.

    Attributes:
        workspace: The stages' folders.
        params: The settings.
        batch: Inputs, and the recorded answers to them.
        commit: Git's commit that the version was made from; None outside Git.
    """

    workspace: Workspace
    params: Path
    batch: Path
    commit: str | None


@contextmanager
def brought_back(
    settings: Settings, version: Version, workspace: Workspace, folders: Collection[str]
) -> Iterator[Copy]:
    """Yield some stages' folders of a version, for the length of a block, without the training samples.

    Raises:
        WorkspaceError: A file can't be found any more.
    """
    with tempfile.TemporaryDirectory() as logged, tempfile.TemporaryDirectory() as into:
        record = fetch_record(settings, version, Path(logged))
        wanted = {place: record.files[place] for place in (record.params, BATCH)}
        for folder in folders:
            wanted |= record.inside(folder)
        wanted = {place: found for place, found in wanted.items() if not place.endswith("/train.safetensors")}
        _, faults = _collect(record, wanted, Path(logged), workspace, Path(into))
        if faults:
            raise _refusal(version, faults)
        root = Path(into) / DEFAULT_ROOT
        if (Path(into) / "data").exists():
            (Path(into) / "data").rename(root / "data")  # where every workspace but the default one has its data
        yield Copy(Workspace(root), Path(into) / record.params, Path(into) / BATCH, record.commit)


def restore(
    settings: Settings, version: Version, into: Path, workspace: Workspace, without: Collection[str] = ()
) -> Restored:
    """Write a version's files into a new folder, laid out like the repository.

    Args:
        settings: Where the registry is.
        version: Which one.
        into: Doesn't exist yet, or is empty.
        workspace: Looked into for files that have the right hash.
        without: Parts to leave out, of `PARTS`.

    Raises:
        WorkspaceError: The folder isn't empty, or files are missing: all of them are named, and nothing is written.
    """
    if into.is_symlink() or (into.exists() and (not into.is_dir() or any(into.iterdir()))):
        what = "is a symbolic link" if into.is_symlink() else "is there already"
        raise WorkspaceError(f"{into} {what}; give a new or an empty folder with --into")
    with tempfile.TemporaryDirectory() as temporary:
        logged = Path(temporary)
        record = fetch_record(settings, version, logged)
        left_out = record.inside("data").keys() if "data" in without else ()
        wanted = {place: found for place, found in record.files.items() if place not in left_out}
        with writing(into.absolute()) as folder:
            code, lost = ("left out", []) if "code" in without else _bring_code(record, logged, folder)
            sources, faults = _collect(record, wanted, logged, workspace, folder)
            if lost or faults:
                raise _refusal(version, [*lost, *faults])
            summary = {"version": version.number, "code": code, "tags": dict(version.tags), "sources": sources}
            write_json(folder / FILE, {**summary, "files": wanted})
    return Restored(record, sources, code)


def _refusal(version: Version, faults: Collection[str]) -> WorkspaceError:
    head = f"version {version.number} can't be brought back whole; nothing was written. Missing:"
    return WorkspaceError("\n  ".join([head, *faults]))


def _bring_code(record: Record, logged: Path, folder: Path) -> tuple[str, list[str]]:
    """Bring back the code; return a description of it, and what is missing."""
    if record.commit is None:
        return "not recorded: when the version was registered, its folder had no Git repository or no commit in it", []
    if record.tree is None:
        return "", [
            f"code: the edits on {record.commit[:12]} were not kept (too large, or with a password); add --without code"
        ]
    try:
        patch = (logged / PATCH).read_bytes()
        if hashlib.sha256(patch).hexdigest() != record.patch_sha256:
            raise WorkspaceError(f"{PATCH} was changed after it was recorded")
        git_snapshot.bring_back(git_snapshot.Source(record.commit, record.tree, patch), folder)
    except (WorkspaceError, FileNotFoundError) as error:
        return "", [f"code: {error}; or add --without code"]
    return f"commit {record.commit}{' and what was not committed then' if patch else ''}", []


def _collect(
    record: Record, wanted: Mapping[str, str], logged: Path, workspace: Workspace, into: Path
) -> tuple[dict[str, str], list[str]]:
    """Copy files to their places; return where each was found, and what is missing."""
    found: dict[str, str] = {}
    faults: list[str] = []

    def take(name: str, offered: Mapping[str, Path]) -> None:
        for place, path in offered.items():
            if place in found or not path.is_file() or _hash(path) != wanted[place]:
                continue
            if (link := _link_on_the_way(into, place)) is not None:
                faults.append(f"{place}: {link} is a symbolic link, which is not followed")
                continue
            (into / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into / place, follow_symlinks=False)
            found[place] = name

    take("MLflow", {place: logged / place for place in wanted})
    take("workspace", {place: _in_workspace(place, workspace) for place in wanted})
    for output, md5 in record.outputs.items():
        inside = [place for place in wanted if place.startswith(f"{output}/")]
        if found.keys() >= set(inside):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            try:
                DvcRepo().bring(md5, Path(temporary))
            except WorkspaceError as error:
                faults.append(f"{output}: {error}")
            take("DVC", {place: Path(temporary) / place.removeprefix(f"{output}/") for place in inside})
    lacking = sorted(wanted.keys() - found.keys())
    if lacking and not record.outputs:
        faults.append("DVC never had the files of this version (--no-commit, or another workspace)")
    faults += [f"{place}: nowhere with sha256 {wanted[place][:12]}…" for place in lacking]
    damaged = [place for place in found if _hash(into / place) != wanted[place]]
    faults += [f"{place}: differs on the disk from what was written; check the disk" for place in damaged]
    return dict(sorted(found.items())), faults


def _link_on_the_way(into: Path, place: str) -> Path | None:
    """Return the part of a path that the version's code made a symbolic link; None if none is one."""
    parts = Path(place).parts
    ways = [into.joinpath(*parts[: end + 1]) for end in range(len(parts))]
    return next((way.relative_to(into) for way in ways if way.is_symlink()), None)


def _in_workspace(place: str, workspace: Workspace) -> Path:
    """Return the workspace's path for a path of the default workspace."""
    first, *rest = Path(place).parts
    if first == "data":
        return workspace.folder("data").joinpath(*rest)
    if first == DEFAULT_ROOT.name and rest:
        return workspace.folder(rest[0]).joinpath(*rest[1:])
    return Path(place)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
