"""Options that several commands share; their values are those that `python -m flows.<name>` takes."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PARAMS = Path("params.yaml")
WORKSPACE = Path("artifacts")
NEGATIVE = 1
FAULT = 2

STAGES = (
    *("prepare", "baseline", "analyze", "profile", "measurements", "prune", "transform", "export", "benchmark"),
    "report",
)
"""In order; repeated here so that completion needn't import the pipeline."""

debug_option = click.option("--debug", is_flag=True, help="Show the traceback of a fault.")
params_option = click.option(
    "--params", type=click.Path(path_type=Path), default=PARAMS, show_default=True, metavar="FILE", help="Settings."
)
prefect_option = click.option("--prefect", is_flag=True, help="Run in Prefect's engine, for its pages.")
workspace_option = click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    default=WORKSPACE,
    show_default=True,
    metavar="DIR",
    help="Where everything is written.",
)


def reads_settings(command: Command) -> Command:
    """Add the options of every command that reads settings and works in a workspace."""
    for option in (debug_option, workspace_option, params_option):
        command = option(command)
    return command


def execute(name: str, action: Callable[[], object], *, debug: bool, workspace: Path | None = None) -> None:
    """Run a command's action; any fault is one message and exit code 2.

    Args:
        name: The command's.
        action: Imports and calls the code that does the work.
        debug: Whether a fault shows its traceback.
        workspace: Named in the message if a file operation fails.
    """
    watch_signals(name)
    from flows import command

    command.execute(f"secateur {name}", Namespace(debug=debug, workspace=workspace), action)


def watch_signals(name: str) -> None:
    """End at once on a signal that comes while the pipeline is being imported, which takes seconds."""
    from flows import signals

    signals.watch(f"secateur {name}", patience_s=0)


def columns() -> int:
    """Return the width to write to: the terminal's, 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def say(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{text}\n")
