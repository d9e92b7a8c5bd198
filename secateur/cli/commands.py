"""Commands that run the pipeline or say how it stands, about registered versions, housekeeping and servers."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from secateur.cli.terminal import (
    NEGATIVE,
    STAGES,
    WORKSPACE,
    debug_option,
    execute,
    params_option,
    prefect_option,
    reads_settings,
    say,
    watch_signals,
)

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


CODE = "code"
"""The stage that tells DVC what the others execute; `dvc.yaml` runs it, nobody has to."""


def _complete_stage(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(stage) for stage in STAGES if stage.startswith(begun)]


class _Stage(click.ParamType[str]):
    name = "stage"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in (*STAGES, CODE):
            from pruning.errors import unknown_name

            self.fail(unknown_name("stage", value, STAGES), param, ctx)
        return value


stage_argument = click.argument("stage", type=_Stage(), shell_complete=_complete_stage)


@click.command(short_help="Run the pipeline, or one stage.", epilog=f"Stages, in order: {', '.join(STAGES)}.")
@click.argument("stage", type=_Stage(), required=False, shell_complete=_complete_stage)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PATH=VALUE",
    help="Another value of a setting for once, such as prune.target.mac_reduction=0.6; may be repeated. Makes a trial "
    "in a workspace of its own, which DVC leaves alone.",
)
@params_option
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"Where everything is written.  [default: {WORKSPACE}; of a trial: trials/NAME]",
)
@click.option("--no-commit", is_flag=True, help="Leave DVC alone.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run nothing: say which stages would run and why, how many attempts, epochs and evaluations, how long, and "
    "what disk and memory are needed, from some seconds of timing.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs, with --dry-run.")
@prefect_option
@debug_option
def run(
    stage: str | None,
    changes: tuple[str, ...],
    params: Path,
    workspace: Path | None,
    no_commit: bool,
    dry_run: bool,
    as_json: bool,
    prefect: bool,
    debug: bool,
) -> None:
    """Run the pipeline, or one STAGE of it: what isn't current, from the data to the report.

    A run that was killed goes on where it was. Exit code 1 if no attempt was accepted.
    """
    if as_json and not dry_run:
        raise click.UsageError("--json goes with --dry-run: a run writes its figures into files")
    if dry_run:
        _dry_run(stage, changes, params, workspace, as_json, debug)
        return
    watch_signals("run")
    from flows import command

    options = Namespace(
        params=params, workspace=workspace or WORKSPACE, no_commit=no_commit, prefect=prefect, debug=debug
    )
    if changes:
        from tasks.config.overrides import trial_workspace

        options.workspace = workspace or trial_workspace(changes)

    def action() -> None:
        if changes:
            from flows.frontier import begin_trial

            options.params = begin_trial(params, changes, options.workspace)
        if stage is None:
            from flows.compress import compress

            command.run_flow(compress, options)
        else:
            from flows.stages import COMMANDS

            command.run_flow(COMMANDS[stage], options)

    command.execute("secateur run", options, action)


def _dry_run(
    stage: str | None, changes: tuple[str, ...], params: Path, workspace: Path | None, as_json: bool, debug: bool
) -> None:
    if stage == CODE:
        raise click.BadParameter(f"{CODE} runs each time, in a second; name another stage, or none")

    def action() -> None:
        from tasks.config.overrides import draft_trial, trial_workspace
        from tasks.estimate import dry_run

        with ExitStack() as stack:
            if changes:
                place, shared = workspace or trial_workspace(changes), WORKSPACE
                found = dry_run.estimate(
                    stack.enter_context(draft_trial(params, changes)), place, shared=shared, only=stage
                )
            else:
                found = dry_run.estimate(params, workspace or WORKSPACE, only=stage)
        if as_json:
            say(json.dumps(dry_run.as_json(found), indent=2))
            return
        from secateur.cli.terminal import print_lines, print_table

        print_table(dry_run.HEAD, dry_run.rows(found), numbers=dry_run.HEAD[2:-1])
        say("")
        print_lines(dry_run.lines(found))

    execute("run", action, debug=debug, workspace=workspace or WORKSPACE)


@click.command(short_help="Say which stages are current.")
@click.option("--json", "as_json", is_flag=True, help="For programs: every stage with its state and reasons.")
@reads_settings
def status(as_json: bool, params: Path, workspace: Path, debug: bool) -> None:
    """Say which stages are current; exit code 0 if all of them are, 1 if not. Nothing is run or written."""

    def action() -> None:
        from tasks.last_run import states_of

        states = states_of(params, workspace)
        current = all(state.is_current for state in states)
        if as_json:
            rows = [{"stage": s.stage, "state": s.state, "reasons": list(s.reasons)} for s in states]
            say(json.dumps({"current": current, "stages": rows}, indent=2))
        else:
            from secateur.cli.terminal import print_table

            print_table(("stage", "state", "why"), [(s.stage, s.state, _short(s.reasons)) for s in states])
        if not current:
            sys.exit(NEGATIVE)

    execute("status", action, debug=debug, workspace=workspace)


def _short(reasons: tuple[str, ...]) -> str:
    more = f" (and {len(reasons) - 1} more: secateur explain)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}" if reasons else ""


@click.command(short_help="Say why a stage would run again.")
@stage_argument
@reads_settings
def explain(stage: str, params: Path, workspace: Path, debug: bool) -> None:
    """Say why a STAGE would run again: which setting, file or code changed, from what to what.

    Exit code 0 if the stage is current, 1 if not.
    """
    if stage == CODE:
        raise click.BadParameter(f"{CODE} runs each time, in a second; name another stage")

    def action() -> None:
        from tasks.last_run import states_of

        state = next(found for found in states_of(params, workspace) if found.stage == stage)
        say("\n".join([f"{stage}: {state.state}", *(f"  {reason}" for reason in state.reasons)]))
        if not state.is_current:
            sys.exit(NEGATIVE)

    execute("explain", action, debug=debug, workspace=workspace)


@click.command(short_help="List the settings of params.yaml.")
@click.argument("path", required=False)
@click.option("--all", "everything", is_flag=True, help="All settings, not only those that a first run needs.")
@click.option("--json-schema", is_flag=True, help="A JSON schema, for editors that complete and check params.yaml.")
@click.option(
    "--migrate",
    "old",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Rewrite a settings file of an earlier version; comments stay.",
)
@debug_option
def params(path: str | None, everything: bool, json_schema: bool, old: Path | None, debug: bool) -> None:
    """List the settings of params.yaml with default, bounds and meaning: those of a first run, or below PATH."""

    def action() -> None:
        if old is not None:
            _migrate(old)
            return
        from tasks.config import reference

        if json_schema:
            say(reference.json_schema_text().rstrip())
            return
        rows = reference.rows_below(path) if path else reference.rows() if everything else reference.first_rows()
        from secateur.cli.terminal import print_settings

        print_settings(rows)
        if not (everything or path):
            say("\nAll settings: secateur params --all")

    execute("params", action, debug=debug)


def _migrate(path: Path) -> None:
    from tasks.config.migration import migrate

    if changes := migrate(path):
        say("\n".join([f"rewrote {path}:", *(f"  {change}" for change in changes)]))
        say("What it leaves out has the default of today: secateur params --all")
    else:
        say(f"{path} has the names of today; it was left as it is")


@click.command(short_help="Compare several targets.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=Path("frontier"),
    show_default=True,
    metavar="DIR",
    help="Where the workspaces and the comparison are written.",
)
@prefect_option
@reads_settings
def frontier(into: Path, params: Path, workspace: Path, prefect: bool, debug: bool) -> None:
    """Run the pipeline for every target of frontier.targets, and compare accuracy, MACs and latency.

    Data, baseline, analysis and profile are taken from the workspace if they are current. Exit code 1 if no attempt was
    accepted for any target.
    """
    watch_signals("frontier")
    from flows.frontier import main

    arguments = ["--params", str(params), "--workspace", str(workspace), "--into", str(into)]
    given = [*arguments, *(["--debug"] if debug else []), *(["--prefect"] if prefect else [])]
    main(given, "secateur frontier")
