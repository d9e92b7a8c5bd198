"""Tell DVC what every stage executes: `python -m flows.code`, the first stage of `dvc repro`, which runs each time."""

from __future__ import annotations

from flows import command
from flows.stage import Run, planned
from pruning.errors import WorkspaceError
from tasks.fingerprints import tell_dvc
from tasks.lock import locked
from tasks.production.versioning import CODE
from tasks.stages import STAGES


def code(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Write what each stage executes, and say which stages that makes run again, and why."""
    run = Run.begin(params, workspace, commit)
    with locked(run.workspace):
        for stage in STAGES:
            try:
                planned(run, stage).say_why()
            except WorkspaceError:  # what it reads isn't there: it has to run anyway
                continue
        tell_dvc(run.settings, run.workspace)
        run.changed()


if __name__ == "__main__":
    command.main(CODE, code, "Tell DVC what every stage executes.")
