"""Commands about registered versions, housekeeping and servers: promote, rollback, restore, cleanup, ui, serve."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from secateur.cli.terminal import debug_option, params_option, prefect_option, reads_settings, watch_signals

PARTS = ("code", "data")
ALIASES = ("candidate", "production", "previous")


def _given(debug: bool, prefect: bool = False, **options: str | Path | None) -> list[str]:
    """Return the arguments for `python -m flows.<name>`, without the options that aren't given."""
    found = [*(["--debug"] if debug else []), *(["--prefect"] if prefect else [])]
    for name, value in options.items():
        if value is not None:
            found += [f"--{name}", str(value)]
    return found


def _complete_alias(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(alias) for alias in ALIASES if alias.startswith(begun)]


@click.command(short_help="Put the candidate into production, if it may.")
@click.option("--approve", is_flag=True, help="Say yes, where promote.require_approval asks a person.")
@prefect_option
@reads_settings
def promote(approve: bool, prefect: bool, params: Path, workspace: Path, debug: bool) -> None:
    """Measure candidate and production side by side; promote the candidate if it passes every gate.

    Exit code 0 if the candidate is in production now, 1 if it is refused.
    """
    watch_signals("promote")
    from flows.promote import main

    main(
        [*_given(debug, prefect, params=params, workspace=workspace), *(["--approve"] if approve else [])],
        "secateur promote",
    )


@click.command(short_help="Put back what was in production before.")
@click.option("--version", metavar="N", help="This version instead of `previous`.")
@params_option
@prefect_option
@debug_option
def rollback(version: str | None, params: Path, prefect: bool, debug: bool) -> None:
    """Put back what was in production before."""
    watch_signals("rollback")
    from flows.rollback import main

    main(_given(debug, prefect, params=params, version=version), "secateur rollback")


@click.command(short_help="Bring back the files of a version.")
@click.option("--version", metavar="N", help="A version's number.")
@click.option(
    "--alias", metavar="NAME", shell_complete=_complete_alias, help=f"Its alias instead: {', '.join(ALIASES)}."
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A folder that doesn't exist yet, or is empty.",
)
@click.option("--without", multiple=True, type=click.Choice(PARTS), help="Leave this out; may be repeated.")
@prefect_option
@reads_settings
def restore(
    version: str | None,
    alias: str | None,
    into: Path,
    without: tuple[str, ...],
    prefect: bool,
    params: Path,
    workspace: Path,
    debug: bool,
) -> None:
    """Bring back the exact files of a registered version, every hash compared."""
    if (version is None) == (alias is None):
        raise click.UsageError("give --version N or --alias NAME, one of both")
    watch_signals("restore")
    from flows.restore import main

    given = _given(debug, prefect, params=params, workspace=workspace, version=version, alias=alias, into=into)
    main([*given, *(word for part in without for word in ("--without", part))], "secateur restore")


@click.command(short_help="Remove old trials and runs.")
@click.option("--cache", is_flag=True, help="DVC's cache too; not where other projects share it.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@params_option
@prefect_option
@debug_option
def cleanup(cache: bool, dry_run: bool, params: Path, prefect: bool, debug: bool) -> None:
    """Remove trials and runs that are older than cleanup.keep_days; never what a version needs."""
    watch_signals("cleanup")
    from flows.cleanup import main

    flags = {"--cache": cache, "--dry-run": dry_run}
    main(
        [*_given(debug, prefect, params=params), *(flag for flag, is_given in flags.items() if is_given)],
        "secateur cleanup",
    )


@click.command(short_help="Show the pages of Prefect and MLflow.")
@debug_option
def ui(debug: bool) -> None:
    """Show the pages of Prefect and MLflow until Ctrl-C."""
    watch_signals("ui")
    from flows.servers import main

    main(_given(debug), "secateur ui")


@click.command(short_help="Run what prefect.yaml deploys.")
@debug_option
def serve(debug: bool) -> None:
    """Run what prefect.yaml deploys, with servers and a worker, until Ctrl-C."""
    watch_signals("serve")
    from flows.serve import main

    main(_given(debug), "secateur serve")
