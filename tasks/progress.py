"""A progress bar on the terminal for whatever takes longer than two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from pruning.evaluation import Progress

DELAY_S = 2.0
LOG_INTERVAL_S = 20.0  # where the bar goes to a file, each state of it is a line


@contextmanager
def shown(what: str) -> Iterator[Progress]:
    """Give a function to call with (done, total); the bar appears after two seconds and leaves nothing behind."""
    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    with tqdm(desc=what, delay=DELAY_S, leave=False, file=sys.stderr, dynamic_ncols=True, mininterval=interval) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
