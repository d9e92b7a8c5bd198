"""The flows that `prefect.yaml` deploys: started by a schedule, by an event, or by the form on Prefect's page.

The parameters' types make the form; the server checks them, and so does the flow. No form takes code, or a path
outside the repository: `tasks.config.overrides` says what may be asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flows.cleanup import cleanup as cleanup_flow
from flows.compress import say_again
from flows.pipeline import run_pipeline
from flows.prefect_adapter import body_of, flow, send_event
from flows.promote import promote as promote_flow
from flows.restore import restore as restore_flow
from flows.rollback import rollback as rollback_flow
from flows.stage_runner import Run
from tasks.config.overrides import SettingsFile, Trial, accept
from tasks.config.schema import load
from tasks.file_cache import holding
from tasks.registry import promote as promotion
from tasks.workspace import DEFAULT_PARAMS, Workspace

RESTORED = Path("restored")
REGISTERED = "secateur.candidate.registered"

Number = Annotated[int, Field(ge=1, le=1_000_000)]
Cache = Annotated[bool, Field(description="DVC's cache too; not where other projects share it.")]
DryRun = Annotated[bool, Field(description="Only say what would be removed.")]


@flow(name="compress", typed=True)
def compress(params: SettingsFile = "params.yaml", trial: Trial | None = None) -> None:
    """Run what has changed, from the data to the report; if nothing has, end in seconds.

    Args:
        params: A settings file that Git tracks. DVC versions what params.yaml asks for; any other needs a trial.
        trial: Other settings for once, in a workspace of its own.
    """
    with holding():
        asked = accept(params, trial)
        if say_again(asked.params, Workspace(asked.workspace), asked.commit):
            settings = load(asked.params)
        else:
            run = Run.begin(str(asked.params), str(asked.workspace), asked.commit)
            settings = run.settings
            run_pipeline(run)
    if asked.commit and (version := promotion.undecided(settings)) is not None:
        send_event(REGISTERED, f"secateur.model.{settings.tracking.model_name}", {"version": version})


@flow(name="promote", typed=True)
def promote() -> bool:
    """Measure candidate and production side by side; put the candidate into production if it passes every gate."""
    return body_of(promote_flow)()


@flow(name="rollback", typed=True)
def rollback(version: Number | None = None) -> None:
    """Put back what was in production before.

    Args:
        version: This version instead of the previous one.
    """
    body_of(rollback_flow)(version=None if version is None else str(version))


@flow(name="restore", typed=True)
def restore(version: Number | None = None, alias: Literal["candidate", "production", "previous"] | None = None) -> None:
    """Bring back the exact files of a version into restored/, every hash compared.

    Args:
        version: Its number.
        alias: Its alias, instead of the number.
    """
    into = RESTORED / (f"version-{version}" if alias is None else alias)
    number = None if version is None else str(version)
    body_of(restore_flow)(str(into), number, alias, params=str(DEFAULT_PARAMS))


@flow(name="cleanup", typed=True)
def cleanup(cache: Cache = False, dry_run: DryRun = False) -> None:
    """Remove trials and runs that are older than `cleanup.keep_days`; never what a version in the registry needs.

    Args:
        cache: Also remove from DVC's cache what no commit, no version and not the folder itself needs.
        dry_run: Only say what would be removed.
    """
    body_of(cleanup_flow)(cache=cache, dry_run=dry_run)
