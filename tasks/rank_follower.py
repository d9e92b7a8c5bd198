"""A process that shares passes over samples with the one that has started it: `python -m tasks.rank_follower`."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from pathlib import Path

from tasks import ranks, statistics  # noqa: F401  # what it will be asked for
from tasks.file_cache import holding
from tasks.loop import recovery  # noqa: F401  # likewise
from tasks.rank_group import group


def main(port: str, rank: str, number: str) -> None:
    """Follow rank 0, until it ends.

    Args:
        port: Of its store, on this machine.
        rank: Of this process.
        number: Of ranks.
    """

    def watch() -> None:
        while os.read(0, 1):  # not by sys.stdin, whose lock would abort this process where a fault ends it
            pass
        os._exit(1)  # whoever leads is gone, and with it the reason to go on

    threading.Thread(target=watch, daemon=True).start()
    logging.disable()  # rank 0 says it
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path.cwd()))  # where models may come from, behind what is imported already
    with holding():
        group.join_as(int(port), int(rank), int(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
