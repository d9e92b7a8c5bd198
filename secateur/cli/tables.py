"""Tables and lists for people: as wide as the terminal, 80 columns in a pipe, without colours if NO_COLOR is set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tasks.config.reference import Row

_STYLES = {"current": "green", "changed": "yellow", "not run": "yellow", "damaged": "red"}


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """Print a table to standard output.

    Args:
        head: The columns' names.
        rows: One text for each column.
        numbers: The columns that are aligned to the right.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in head:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    _console().print(table)


def print_settings(rows: Iterable[Row]) -> None:
    """Print settings: path, type and default on one line, the meaning below it."""
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
    return Console(highlight=False, emoji=False)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, broken at the terminal's width where they are longer."""
    console = _console()
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        console.print(
            Text("\n".join(wrap(line, console.width, subsequent_indent=f"{indent}    ")) or ""), soft_wrap=True
        )
