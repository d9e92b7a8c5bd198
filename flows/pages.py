"""Show Prefect's and MLflow's pages until Ctrl-C: `python -m flows.pages`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from flows import signals
from flows.command import FAULT, bare_parser
from flows.servers import Programs, how_to_log_in, mlflow_server, prefect_server, programs
from pruning.errors import SecateurError
from tasks.config.schema import Settings, load
from tasks.workspace import DEFAULT_PARAMS

_LONGEST_END_S = 60.0  # for servers, a worker and its runs, one after the other


def show_pages(settings: Settings, started: Programs) -> str:
    """Start both servers and print where their pages are; return the address of Prefect's API."""
    sys.stderr.write("starting; this takes up to a minute\n")
    sys.stderr.flush()
    api = prefect_server(started)
    mlflow = mlflow_server(started, settings)
    sys.stdout.write(f"{'Prefect':<8} {api.removesuffix('/api')}{how_to_log_in()}\n{'MLflow':<8} {mlflow}\n")
    sys.stdout.flush()
    return api


def until_interrupted(
    name: str, summary: str, run: Callable[[Settings, Programs], object], arguments: Sequence[str] | None = None
) -> None:
    """Start programs and keep them until Ctrl-C or until one ends by itself, which is a fault.

    Args:
        name: The command's.
        summary: What it does, for its help.
        run: Starts the programs.
        arguments: Of the command line; None for the process's own.
    """
    options = bare_parser(name, summary).parse_args(arguments)
    signals.watch(name, patience_s=_LONGEST_END_S)
    try:
        settings = load(DEFAULT_PARAMS)
        with programs() as started:
            run(settings, started)
            sys.stdout.write("Ctrl-C ends all of it\n")
            sys.stdout.flush()
            started.watch()
    except SystemExit:
        if not signals.asked():
            raise
    except (SecateurError, OSError) as fault:
        if options.debug:
            raise
        sys.stderr.write(f"{name}: {fault}\n")
        sys.exit(FAULT)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it from the command line."""
    until_interrupted("pages", "Show Prefect's and MLflow's pages until Ctrl-C.", show_pages, arguments)


if __name__ == "__main__":
    main()
