"""Run a function in a process of its own, with a time-out and a limit on memory."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_GIB = 1 << 30
_START_S = 600.0


def run_apart(function: Callable[..., Any], *args: Any, timeout_s: float, memory_gib: float) -> Any:
    """Call a function in a fresh process and return its result.

    Args:
        function: Importable by its name.
        args: Its arguments.
        timeout_s: Seconds that the call may take; the start of the process doesn't count.
        memory_gib: Limit on the address space of the process.

    Raises:
        TimeoutError: It took longer.
        ChildProcessError: The process died, most often of too little memory, or the function raised.
    """
    context = multiprocessing.get_context("forkserver")
    # Heavy packages are imported once, by the process from which all others are forked.
    context.set_forkserver_preload(["benchmarks.preload"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, memory_gib, function, args), daemon=True)
    process.start()
    sender.close()
    try:
        _receive(receiver, _START_S)
        return _receive(receiver, timeout_s)
    except EOFError:
        process.join(5)
        raise ChildProcessError(f"its process died with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()


def _receive(receiver: Connection, timeout_s: float) -> Any:
    end = time.monotonic() + timeout_s
    while not receiver.poll(0.1):
        if time.monotonic() > end:
            raise TimeoutError(f"not done after {timeout_s:.0f} s")
    return receiver.recv()


def _call(sender: Connection, memory_gib: float, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_gib * _GIB),) * 2)
    sender.send("started")
    sender.send(function(*args))
    sender.close()
