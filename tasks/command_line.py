"""The command that a message tells the user to run."""

from __future__ import annotations

import sys
from pathlib import Path

FLOWS = Path(__file__).resolve().parent.parent / "flows"


def command_line(words: str) -> str:
    """Return a command in the form in which this process was started, in backticks.

    In a user's own repository that is `secateur run prune`: `python -m flows.prune` might be a module of theirs.

    Args:
        words: What follows `secateur`: "run", "run prune", "rollback --version 3".
    """
    if Path(sys.argv[0]).parent != FLOWS:
        return f"`secateur {words}`"
    return f"`python -m flows.{'compress' if words == 'run' else words.removeprefix('run ')}`"
