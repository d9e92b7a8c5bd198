"""Remove what nobody needs, in the workspace, in MLflow and on Prefect's pages: `python -m flows.cleanup`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows import command
from flows.prefect_adapter import flow, remove_flow_runs
from pruning.errors import SettingsError
from tasks.config.schema import load
from tasks.registry.cleanup import remove_runs, remove_set_aside, remove_trials, remove_unneeded_objects
from tasks.workspace import DEFAULT_PARAMS, DEFAULT_ROOT, Workspace, locked

NAME = "cleanup"


@flow(name=NAME)
def cleanup(params: str = "params.yaml", cache: bool = False, dry_run: bool = False) -> None:
    """Remove trials and runs that are older than `cleanup.keep_days`; never what a version in the registry needs.

    Args:
        params: The settings file: how long things are kept, and where MLflow's runs are.
        cache: Also remove from DVC's cache what no commit, no version and not the folder itself needs.
        dry_run: Only say what would be removed.

    Raises:
        SettingsError: The cache is to be cleaned up by the registry of other settings than those that filled it.
        WorkspaceError: A store can't be used, or a run is at work.
    """
    if cache and Path(params) != DEFAULT_PARAMS:
        raise SettingsError(
            f"DVC's cache holds what {DEFAULT_PARAMS} asked for, and the registry that {params} names may not know of "
            f"all that is needed; leave out --cache, or clean up by {DEFAULT_PARAMS}"
        )
    settings = load(Path(params))
    before = datetime.now(UTC) - timedelta(days=settings.cleanup.keep_days)
    verb = "would go" if dry_run else "removed"
    trials = remove_trials(before, dry_run=dry_run)
    command.log.info("trials %s: %s", verb, ", ".join(map(str, trials)) or "none")
    left = remove_set_aside(Workspace(DEFAULT_ROOT), before, dry_run=dry_run)
    command.log.info("loops that were set aside %s: %s", verb, ", ".join(map(str, left)) or "none")
    command.log.info("MLflow's runs %s: %d", verb, len(remove_runs(settings, before, dry_run=dry_run)))
    count = remove_flow_runs(before, dry_run=dry_run)
    if count is None:
        command.log.info("Prefect's runs are left alone: no server is named; set PREFECT_API_URL, or add --prefect")
    else:
        command.log.info("Prefect's runs %s: %d", verb, count)
    if cache:
        with locked(Workspace(DEFAULT_ROOT)):  # a stage under way has put nothing into DVC's lock yet
            files = remove_unneeded_objects(settings, dry_run=dry_run)
        command.log.info("files of DVC's cache %s: %d", verb, files)


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> None:
    """Run the flow from the command line; its messages are signed with the name."""
    given = command.parser(NAME, "Remove trials and runs that are older than cleanup.keep_days.")
    given.add_argument("--cache", action="store_true", help="DVC's cache too; not where other projects share it")
    given.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    options = given.parse_args(arguments)
    command.execute(name, options, lambda: cleanup(str(options.params), options.cache, options.dry_run))


if __name__ == "__main__":
    main()
