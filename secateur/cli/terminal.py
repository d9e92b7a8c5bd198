"""What commands share: options, with the values that `python -m flows.<name>` takes, and tables for people.

Tables are as wide as the terminal, 80 columns in a pipe, without colours if NO_COLOR is set.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    *("prepare", "baseline", "analyze", "profile", "measurements", "prune", "transform", "export", "quantize"),
    *("benchmark", "report"),
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
    help="Where a run writes everything.",
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
    with _console() as console:
        console.print(table)


def print_settings(rows: Iterable[Row]) -> None:
    """Print settings: path, type and default on one line, the meaning below it."""
    from rich.text import Text

    with _console() as console:
        for row in rows:
            bounds = f", {row.bounds}" if row.bounds else ""
            default = f"; {row.default}" if row.default else ""
            of = f"; of kind {', '.join(row.kinds)}" if row.kinds else ""
            what = f"{row.path}: {row.kind}{bounds}{default}{of}"
            head, *more = wrap(what, console.width, subsequent_indent="    ")
            console.print(Text.assemble((row.path, "bold"), head.removeprefix(row.path)), soft_wrap=True)
            more += wrap(row.meaning, console.width, initial_indent="    ", subsequent_indent="    ")
            console.print(*map(Text, more), sep="\n", soft_wrap=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, broken at the terminal's width where they are longer."""
    from rich.text import Text

    with _console() as console:
        for line in lines:
            indent = line[: len(line) - len(line.lstrip())]
            wrapped = wrap(line, console.width, subsequent_indent=f"{indent}    ")
            console.print(Text("\n".join(wrapped)), soft_wrap=True)


@contextmanager
def _console() -> Iterator[Console]:
    """Give a console to print to; its lines are written at the end, without the blanks that fill a table's columns."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    with console.capture() as captured:
        yield console
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())
