"""The only file that knows DVC: its `dvc.yaml`, which stages it calls changed, how one is committed, and comes back.

python -m tasks.registry.dvc_repo > dvc.yaml     # this repository's, anew
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pruning.errors import WorkspaceError
from tasks.registry.mlflow_client import is_plain
from tasks.stage_table import CODE, STAGES, Stage, find_stage
from tasks.workspace import DEFAULT_ROOT, Workspace

INSIDE = "DVC_STAGE"
"""DVC sets this variable for the stage commands that it runs."""

LOCK = Path("dvc.lock")

log = logging.getLogger("secateur")


_HEAD = """\
# What each stage reads and writes, made from Secateur's table of the stages; what is written here by hand is lost.
# An environment in .venv/ is used where there is one.
"""


def dvc_yaml(command: str) -> str:
    """Write the stages as `dvc.yaml` has them, from the table of the stages.

    What a stage executes and its settings, with those that `params.yaml` leaves out, are in a file for each stage,
    which the stage `code` writes: DVC sees neither by itself, and its own `params` refuse a section that isn't there.

    Args:
        command: Runs a stage, whose name stands for `{}`.
    """
    from tasks.config.yaml_io import as_yaml
    from tasks.fingerprint import code_file

    workspace = Workspace(DEFAULT_ROOT)

    def told(stage: Stage) -> str:
        return code_file(stage, workspace).as_posix()

    def folder(stage: Stage) -> str:
        return workspace.folder(stage.folder).as_posix()

    def run(name: str) -> str:
        return f'PATH="$PWD/.venv/bin:$PATH" {command.format(name)}'

    found: dict[str, Any] = {CODE: {"cmd": run(CODE), "always_changed": True, "outs": [told(s) for s in STAGES]}}
    for stage in STAGES:
        read = [told(stage)]
        for need in map(find_stage, stage.needs):
            read += [f"{folder(need)}/{name}" for name in need.files] or [folder(need)]
        made = {folder(stage): {"persist": True}} if stage.persist else folder(stage)
        found[stage.name] = {"cmd": run(stage.name), "deps": read, "outs": [made]}
    return _HEAD + as_yaml({"stages": found})


class DvcRepo:
    """The DVC repository of the current folder."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            WorkspaceError: There is none, or DVC itself runs this command as a stage.
        """
        if INSIDE in os.environ:
            raise WorkspaceError("DVC commits the stages that it runs; a command can't commit from inside one")
        from dvc.exceptions import NotDvcRepoError
        from dvc.scm import SCMError

        _silence()
        try:
            self._open()
        except NotDvcRepoError as error:
            raise WorkspaceError(
                "this folder is no DVC repository, so results can't be versioned; run `git init && dvc init` here, "
                "or add --no-commit"
            ) from error
        except SCMError as error:
            here = Path.cwd()
            if not any((folder / ".git").exists() for folder in (here, *here.parents)):
                raise WorkspaceError(
                    f"{here} is in no Git repository, which DVC needs (a downloaded archive isn't one); run `git init` "
                    "here, then the same command again"
                ) from error
            raise WorkspaceError(
                f"DVC can't use the Git repository of this folder ({error}); repair it, or add --no-commit"
            ) from error

    def changed(self) -> frozenset[str]:
        """Return the names of the stages whose code, settings, inputs or outputs DVC calls changed.

        Raises:
            WorkspaceError: `dvc.yaml` isn't there or is malformed, or DVC is busy.
        """
        found = self._run(lambda repository: repository.status())
        return frozenset(stage for stage, reasons in found.items() if reasons != ["always changed"])

    def commit(self, stage: str) -> None:
        """Record a finished stage in `dvc.lock` and put its output into the cache.

        Raises:
            WorkspaceError: DVC refuses.
        """
        self._run(lambda repository: repository.commit(stage, force=True))

    def outputs(self) -> dict[str, str]:
        """Return the outputs in `dvc.lock`: folder -> its md5 in the cache."""
        found = self._run(lambda repository: [out for stage in repository.index.stages for out in stage.outs])
        return {str(out): str(out.hash_info.value) for out in found if out.hash_info}

    def bring(self, folder_md5: str, into: Path) -> None:
        """Write an earlier state of a folder, from the cache, or from the remote if the cache lacks something.

        Raises:
            WorkspaceError: Neither has it.
        """
        from dvc_data.hashfile.hash_info import HashInfo

        cache, wanted = self._open().cache.local, HashInfo("md5", folder_md5)

        def bring(objects: list[Any]) -> None:
            lacking = [found for found in objects if not cache.exists(found.value)]
            if lacking:
                self._run(lambda repository: repository.cloud.pull(lacking))
            for found in lacking:
                if not cache.exists(found.value):
                    raise WorkspaceError(f"DVC has {found.value} neither in its cache nor in its remote")

        bring([wanted])  # the list of the folder's files
        files = _files_of(cache, wanted)
        bring(list(files.values()))
        for name, found in files.items():
            if not is_plain(name):
                raise WorkspaceError(f"DVC's list {folder_md5} names {name!r}, which is no file inside a folder")
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cache.oid_to_path(found.value), into / name)

    def remove_all_but(self, outputs: Iterable[str], *, dry_run: bool) -> int:
        """Remove from the cache what neither a commit nor the current folder needs.

        Args:
            outputs: The md5 of further files and folders to keep; of a folder, its files too.
            dry_run: Only count.

        Returns:
            The number of files.

        Raises:
            WorkspaceError: What is to be kept can't be told, since the cache is damaged; nothing is removed.
        """
        from dvc_data.hashfile.gc import gc
        from dvc_data.hashfile.hash_info import HashInfo

        cache = self._open().cache.local
        kept = {HashInfo("md5", output) for output in outputs if cache.exists(output)}
        kept |= {found for output in tuple(kept) if output.isdir for found in _files_of(cache, output).values()}

        def remove(repository: Any) -> int:
            with repository.lock:
                _silence()  # it warns of each commit before the first result
                used = set().union(*repository.used_objs(all_commits=True, force=True).values())
                return int(gc(cache, used | kept, dry=dry_run))

        return int(self._run(remove))

    @staticmethod
    def _open() -> Any:
        from dvc.repo import Repo

        return Repo()

    def _run(self, action: Callable[[Any], Any]) -> Any:
        """Use the repository; first repair a file of DVC's that a kill left half-written."""
        from dvc.exceptions import DvcException
        from dvc.lock import LockError

        try:
            try:
                return action(self._open())
            except DvcException as error:
                damaged = _half_written(error)
                if damaged is None:
                    raise
                damaged.unlink()
                log.warning("%s is cut off, perhaps by a kill: it is made again from the files that are there", damaged)
                return action(self._open())
        except LockError as error:
            raise WorkspaceError("DVC is busy in another process; run again when that has ended") from error
        except DvcException as error:
            raise WorkspaceError(f"DVC can't go on: {error}{_cause(error)}; mend it, or add --no-commit") from error


def _cause(error: Exception) -> str:
    """Say where a YAML file is malformed. DVC's reader takes less than ours: no bare MODULE:NAME inside {...}."""
    cause = error.__cause__
    problem, mark = getattr(cause, "problem", None), getattr(cause, "problem_mark", None)
    if problem is None or mark is None:
        return ""
    hint = " (inside {...}, put what holds a colon in quotes: {factory: 'net:make'})" if "':'" in problem else ""
    return f", line {mark.line + 1}: {problem}{hint}"


def _silence() -> None:
    """Keep DVC from writing to the terminal: what fails is raised, and the rest is in `dvc.lock`.

    Importing DVC turns its messages on.
    """
    for name in ("dvc", "dvc_objects", "dvc_data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _files_of(cache: Any, folder: Any) -> dict[str, Any]:
    """Return what DVC's list of a folder names: place inside it -> hash.

    Raises:
        WorkspaceError: The list is damaged.
    """
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    try:
        return {"/".join(key): found for key, _, found in Tree.load(cache, folder)}
    except ObjectFormatError as error:
        raise WorkspaceError(
            f"{cache.oid_to_path(folder.value)}, a list of files in DVC's cache, is damaged; remove it, and `dvc pull` "
            "brings it back where there is a remote"
        ) from error


def _half_written(error: Exception) -> Path | None:
    """Return the file that DVC can't read because it was killed while writing in place; None if that isn't the cause.

    Losing either file loses no information: stages whose entry is gone are still current, and are committed again.
    """
    from dvc.rwlock import RWLOCK_FILE, RWLockFileCorruptedError, RWLockFileFormatError
    from dvc.utils.serialize import YAMLFileCorruptedError
    from dvc.utils.strictyaml import YAMLValidationError

    if isinstance(error, RWLockFileCorruptedError | RWLockFileFormatError):
        return Path(".dvc", "tmp", RWLOCK_FILE)
    if isinstance(error, YAMLFileCorruptedError | YAMLValidationError) and Path(str(error.path)).name == LOCK.name:
        return LOCK
    return None


def outputs() -> dict[str, str]:
    """Return the outputs of the current folder that DVC knows; none if there is no repository."""
    try:
        return DvcRepo().outputs()
    except WorkspaceError:
        return {}


def inside_dvc() -> bool:
    """Say whether DVC runs this command as one of its stages."""
    return INSIDE in os.environ


if __name__ == "__main__":
    sys.stdout.write(dvc_yaml("python -m flows.{}"))
