"""Kills the process it is loaded into at a point that the environment names.

Python imports `sitecustomize` at the start of every process that finds it on its path: nothing of the product has to
know. What the process is about to do is heard from the interpreter's own audit hooks and SQLAlchemy's events. Each
event is a line of KILL_TRACE, `KIND PLACE`, shared by a command's processes:

    write    a file is opened to be written          kill after: it is there, and empty
    rename   a file or folder goes to its place      kill after: it has gone
    remove   a file or folder is removed
    sql      a statement that changes MLflow's store, within a transaction
    commit   a transaction that changed something    kill after: it is committed
    step     the model was run on a batch in training, by the project's own loss
    call     what the project's own code says with `sys.audit("secateur.call", name)`

KILL_POINT is `NUMBER before|after KIND PLACE`: the NUMBERth such line, from 1; or `NUMBER any`: the NUMBERth of all.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

TRACE, POINT = os.environ.get("KILL_TRACE"), os.environ.get("KILL_POINT", "")
ROOT = os.environ.get("KILL_ROOT", "")
_VOLATILE = [
    (re.compile(r"\.probe-\d+"), ".probe"),
    (re.compile(r"\.dvc/(cache|tmp)/.*?(rwlock$|$)"), r".dvc/\1/\2"),
    (re.compile(r"[0-9a-f]{16,}"), "#"),
]
_NO_WRITES = os.O_WRONLY | os.O_RDWR


def _place(path: object) -> str | None:
    """Name a file of the project; None for any other."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    whole = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - neither links nor what isn't there
    if not whole.startswith(f"{ROOT}{os.sep}") or "__pycache__" in whole:
        return None
    place = whole.removeprefix(f"{ROOT}{os.sep}")
    if place.startswith(".git/"):
        return None
    for pattern, name in _VOLATILE:
        place = pattern.sub(name, place)
    return place


def _die() -> NoReturn:
    alone = os.environ.get("KILL_ALONE")
    os.kill(os.getpid(), signal.SIGKILL) if alone else os.killpg(os.getpgrp(), signal.SIGKILL)
    signal.pause()
    raise AssertionError("it lives on")


class _Killer:
    """Writes the trace, and kills where the point is met."""

    def __init__(self, trace: str, point: str) -> None:
        self._trace = os.open(trace, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        number, _, rest = point.partition(" ")
        self._number = int(number or 0)
        self._side, _, self._line = rest.partition(" ")
        self._busy = False

    def happens(self, kind: str, place: str, do_it: Any = None) -> None:
        """Note an event; at the point, die before it, or do it and die."""
        if self._busy:
            return
        self._busy = True
        line = f"{kind} {place}"
        os.write(self._trace, f"{line}\n".encode())
        if self._number and (self._side == "any" or line == self._line):
            seen = os.pread(self._trace, os.fstat(self._trace).st_size, 0).decode().splitlines()
            if (len(seen) if self._side == "any" else seen.count(line)) == self._number:
                if self._side == "after":
                    do_it()
                _die()
        self._busy = False


def _listen(killer: _Killer) -> None:
    """Hear of what changes MLflow's store."""
    from sqlalchemy import Engine, event

    changed: list[str] = []

    def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        words = statement.split(maxsplit=3)
        if words[0] in ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP"):
            table = words[2] if words[0] in ("INSERT", "DELETE", "CREATE", "ALTER", "DROP") else words[1]
            changed.append(table)
            killer.happens("sql", f"{words[0]} {table}")

    def commit(connection: Any) -> None:
        if changed:
            tables = " ".join(sorted(set(changed)))
            changed.clear()
            killer.happens("commit", tables, connection.connection.commit)

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "commit", commit)


def watch(trace: str, point: str) -> None:
    """Hear of everything from now on."""
    killer = _Killer(trace, point)
    listening = False

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal listening
        if name == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and bool(flags & _NO_WRITES)
            if writes and (place := _place(path)):
                killer.happens("write", place, lambda: Path(path).write_bytes(b""))
        elif name == "os.rename":
            if place := _place(arguments[1]):
                killer.happens("rename", place, lambda: os.replace(*arguments[:2]))  # noqa: PTH105
        elif name in ("os.remove", "os.rmdir", "shutil.rmtree"):
            inside = len(arguments) < 2 or arguments[1] in (None, -1)  # else the name is relative to an open folder
            if inside and (place := _place(arguments[0])):
                killer.happens("remove", place)
        elif name == "sqlite3.connect" and not listening and "mlflow.db" in str(arguments[0]):
            listening = True
            _listen(killer)
        elif name == "secateur.step":
            killer.happens("step", "training")
        elif name == "secateur.call":
            killer.happens("call", *arguments)

    sys.addaudithook(hook)


if TRACE:
    watch(TRACE, POINT)
