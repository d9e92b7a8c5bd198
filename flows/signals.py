"""Signals that ask for the end: one message at once, an exception that unwinds the work, and a deadline.

    a signal ─► Python's C handler ─► a byte in a pipe ─► a thread: the message, the deadline
            └─► Python's own handler, in the main thread, between two of its instructions: SystemExit, once

The thread needs nothing of the main thread, which may be in native code for long, and sees the signal whoever has
replaced the handler: Prefect's engine does. An exception can be swallowed by whoever catches all of them, so what must
not begin after a signal asks first. What hasn't ended by the deadline is ended by force, which is as safe as `kill -9`:
the next run continues to the same bytes (docs/kill-matrix.md). The interpreter's own end, which no thread outlives
and which may take long, is left out.

A signal that was ignored when the process began stays ignored, as `nohup` and a shell's background jobs expect.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

import psutil

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 5.0
_EXIT_CODE = 128  # and the signal's number
_HEEDED = tuple(number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN)


class _Watch:
    """What this process knows of signals that ask for its end."""

    def __init__(self) -> None:
        self.name = "secateur"
        self.patience_s = 0.0
        self.asked: int | None = None
        self.raised = False
        self.unwinds = True
        self.leaves = False
        self.ours = False  # whether the handlers are
        self.process: int | None = None  # a fork has no thread
        self._unsaid = threading.Lock()

    def listen(self) -> None:
        """Have the C handler write to a pipe, and a thread read it."""
        if self.process == os.getpid():
            return
        self.process = os.getpid()
        atexit.register(self._leave)  # before what is imported later registers: it is called after that
        ours, handlers = socket.socketpair()
        handlers.setblocking(False)
        signal.set_wakeup_fd(handlers.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._wait, args=(ours, handlers), name="signals", daemon=True).start()

    def _wait(self, ours: socket.socket, _kept_open: socket.socket) -> None:
        while True:
            number = ours.recv(1)[0]
            if number in ASKING:
                break
        self.note(number)
        time.sleep(self.patience_s)
        try:
            end_children()
        finally:
            os._exit(_EXIT_CODE + number)

    def _leave(self) -> None:
        """End where only the interpreter's own end is left."""
        if self.leaves and self.asked is not None and self.process == os.getpid():
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(_EXIT_CODE + self.asked)

    def note(self, number: int) -> None:
        """Say once, from the thread or from the handler, whichever comes first, which signal it was."""
        if self._unsaid.acquire(blocking=False):
            self.asked = number
            what = signal.Signals(number).name
            os.write(2, f"\n{self.name}: ended by {what}; run the same command again to continue\n".encode())

    def _silence_callbacks(self) -> None:
        """Print nothing where a callback of the garbage collection swallows the exception: the message is said."""
        others = sys.unraisablehook

        def hook(fault: sys.UnraisableHookArgs) -> None:
            if not isinstance(fault.exc_value, SystemExit):
                others(fault)

        sys.unraisablehook = hook

    def raise_once(self, number: int, _frame: FrameType | None) -> None:
        """Unwind the main thread; further signals don't disturb the unwinding."""
        if self.unwinds and not self.raised:
            self.raised = True
            self._silence_callbacks()
            self.note(number)
            raise SystemExit(_EXIT_CODE + number)


_watch = _Watch()


def watch(name: str, patience_s: float = PATIENCE_S, *, unwinds: bool = True) -> None:
    """Let signals end this process: by SystemExit in the main thread, and by force after a while.

    Args:
        name: Of the command, for the message.
        patience_s: How long the exception may take; 0 to end at once, where there is nothing to be unwound.
        unwinds: Whether there is an exception; not for a loop that asks `asked` itself.
    """
    _watch.name, _watch.patience_s, _watch.ours, _watch.unwinds = name, patience_s, True, unwinds
    take_over()
    _watch.listen()


def set_deadline(name: str) -> None:
    """Set only the deadline, in a process whose handlers belong to others, such as a run that a worker started."""
    if _watch.process != os.getpid() and threading.current_thread() is threading.main_thread():
        _watch.name, _watch.patience_s = name, PATIENCE_S
        _watch.listen()


def take_over() -> None:
    """Replace other handlers with ours, if this process is a command of ours."""
    if _watch.ours and threading.current_thread() is threading.main_thread():
        for number in _HEEDED:
            signal.signal(number, _watch.raise_once)


def asked() -> bool:
    """Say whether a signal has asked for the end."""
    return _watch.asked is not None


def end_if_asked() -> None:
    """Raise the handler's exception again, if a signal has asked for the end and the exception was swallowed.

    What is registered with `atexit` is done then; the interpreter's own end is left out.

    Raises:
        SystemExit: With the exit code that says which signal it was.
    """
    if _watch.asked is not None:
        _watch.leaves = True
        raise SystemExit(_EXIT_CODE + _watch.asked)


def end_children() -> None:
    """Kill all children of this process, and theirs."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=1)
