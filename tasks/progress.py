"""A progress bar on the terminal for whatever takes longer than two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from pruning.evaluation import Progress

DELAY_S = 2.0


@contextmanager
def shown(what: str) -> Iterator[Progress]:
    """Give a function to call with (done, total); the bar appears after two seconds and leaves nothing behind."""
    with tqdm(desc=what, delay=DELAY_S, leave=False, file=sys.stderr, dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
