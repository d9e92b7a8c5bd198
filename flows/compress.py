"""The whole pipeline, from the data to the report: `python -m flows.compress`.

Where nothing has changed since a run that found every stage current and recorded, that run's result is shown again;
else, `flows.pipeline` is imported, which takes seconds.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from flows import command
from pruning.errors import TargetError
from tasks import last_run
from tasks.file_cache import holding
from tasks.registry.dvc_repo import DvcRepo
from tasks.registry.mlflow_client import hash_of_content
from tasks.stage_table import CODE, NAMES
from tasks.workspace import Workspace, locked

log = logging.getLogger("secateur")

NAME = "compress"
SUMMARY = "Run the whole pipeline, from the data to the report."


def compress(params: str = "params.yaml", workspace: str = "artifacts", commit: bool = True) -> None:
    """Run every stage that isn't current, record the result in MLflow, show it: a flow, unless there is nothing to run.

    Raises:
        TargetError: No attempt was accepted.
    """
    place = Workspace(Path(workspace))
    with holding():
        if say_again(Path(params), place, commit):
            return
        from flows.pipeline import run_pipeline_as_flow
        from flows.stage_runner import Run

        run_pipeline_as_flow(Run.begin(params, workspace, commit), NAME, SUMMARY)


def say_again(params: Path, workspace: Workspace, commit: bool) -> bool:
    """Show the last run's result, if nothing has changed since; say whether that is so.

    Raises:
        TargetError: No attempt was accepted then.
    """
    if not (workspace.root / last_run.FILE).exists():
        return False
    with locked(workspace):
        answer = last_run.same_again(params, workspace, told=commit)
        if answer is None or hash_of_content(answer["store"]) != answer["store_content"]:
            return False
        if commit and DvcRepo().changed() & {CODE, *NAMES}:
            return False
        log.info("every stage is current: nothing to run")
        sys.stdout.write(answer["text"])
        sys.stdout.flush()
        if answer["refusal"] is not None:
            raise TargetError(answer["refusal"])
    return True


if __name__ == "__main__":
    command.main(NAME, compress, SUMMARY)
