"""Calls of one function in several processes of this machine, none of which outlives the one that asked for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from flows import signals
from flows.engine import process_pool
from pruning.errors import WorkspaceError


def in_processes(function: Callable[..., None], calls: Sequence[tuple[Any, ...]], processes: int) -> Iterator[int]:
    """Call a function with each of many arguments, and say after each call how many are done.

    Args:
        function: Of a module, so that another process finds it.
        calls: The arguments of each call.
        processes: How many work side by side.

    Raises:
        WorkspaceError: A process was killed.
        Exception: Whatever the function raised; the other processes are ended then.
    """
    before = set(multiprocessing.active_children())
    with process_pool(min(processes, len(calls)), _belong_to_the_parent) as submit:
        try:
            results = [submit(function, *arguments) for arguments in calls]
            for done, result in enumerate(results):
                result()
                yield done + 1
        except BaseException as fault:
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            if not isinstance(fault, BrokenProcessPool):
                raise
            raise WorkspaceError(
                f"one of {processes} processes at work was killed, most often because memory ran out. What was "
                "finished is kept; run the same command again, with a smaller machine.processes if memory is short"
            ) from fault


def _belong_to_the_parent() -> None:
    """Leave signals to the process that asked for this one, and end with it, however it ends."""
    for number in signals.ASKING:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
