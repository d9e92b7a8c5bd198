"""What the terminal shows: the command that a message tells the user to run, and the bar of what takes long."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:  # torch takes seconds to import, and a message about a setting needs none of it
    from pruning.evaluation import Progress

DELAY_S = 2.0
LOG_INTERVAL_S = 20.0  # where the bar goes to a file, each state of it is a line
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


@contextmanager
def shown(what: str) -> Iterator[Progress]:
    """Give a function to call with (done, total); the bar appears after two seconds and leaves nothing behind."""
    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    with tqdm(desc=what, delay=DELAY_S, leave=False, file=sys.stderr, dynamic_ncols=True, mininterval=interval) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
