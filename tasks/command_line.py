"""The command that a message tells the user to run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

FLOWS = Path(__file__).resolve().parent.parent / "flows"

_CARRIED = ("--params", "--workspace", "--set")
"""Options that say which settings and which workspace: without them, the command would run something else."""


def command_line(words: str) -> str:
    """Return a command in the form in which this process was started, in backticks.

    In a user's own repository that is `secateur run prune`: `python -m flows.prune` might be a module of theirs. A run
    carries over the settings and the workspace that this process was given.

    Args:
        words: What follows `secateur`: "run", "run prune", "rollback --version 3".
    """
    command = f"secateur {words}"
    if Path(sys.argv[0]).parent == FLOWS:
        command = f"python -m flows.{'compress' if words == 'run' else words.removeprefix('run ')}"
    return f"`{shlex.join([*command.split(), *(_carried() if words.split()[0] == 'run' else ())])}`"


def _carried() -> Iterator[str]:
    given = iter(sys.argv[1:])
    for argument in given:
        name, equals, _ = argument.partition("=")
        if name in _CARRIED:
            yield argument
            if not equals:
                yield from (value for value in [next(given, None)] if value is not None)
