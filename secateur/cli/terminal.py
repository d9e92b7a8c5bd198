"""What commands share: options, with the values that `python -m flows.<name>` takes, and tables for people.

Tables are as wide as the terminal, 80 columns in a pipe, without colours if NO_COLOR is set.
"""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from tasks.config.reference import Row

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

_STYLES = {"current": "green", "changed": "yellow", "not run": "yellow", "damaged": "red"}

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


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """Print a table to standard output.

    Args:
        head: The columns' names.
        rows: One text for each column.
        numbers: The columns that are aligned to the right.
    """
    from rich.table import Table  # here, so that `--help` needn't import it
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in head:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    _console().print(table)


def print_settings(rows: Iterable[Row]) -> None:
    """Print settings: path, type and default on one line, the meaning below it."""
    from rich.text import Text

    console = _console()
    for row in rows:
        bounds = f", {row.bounds}" if row.bounds else ""
        default = f"; {row.default}" if row.default else ""
        of = f"; of kind {', '.join(row.kinds)}" if row.kinds else ""
        what = f"{row.path}: {row.kind}{bounds}{default}{of}"
        head, *more = wrap(what, console.width, subsequent_indent="    ")
        console.print(Text.assemble((row.path, "bold"), head.removeprefix(row.path)), soft_wrap=True)
        more += wrap(row.meaning, console.width, initial_indent="    ", subsequent_indent="    ")
        console.print(*map(Text, more), sep="\n", soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, broken at the terminal's width where they are longer."""
    from rich.text import Text

    console = _console()
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        console.print(
            Text("\n".join(wrap(line, console.width, subsequent_indent=f"{indent}    ")) or ""), soft_wrap=True
        )
