"""Processes that die without a word, at one step of what they do to the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

_STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
_DIED = 9


def died_before(step: int, action: Callable[[], object]) -> bool:
    """Do something in a process of its own that dies before its step of this number; say whether it came so far."""
    number = os.fork()
    if number == 0:
        seen = 0

        def hook(name: str, _arguments: object) -> None:
            nonlocal seen
            seen += name in _STEPS
            if seen == step:
                os._exit(_DIED)

        sys.addaudithook(hook)
        action()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    assert code in (0, _DIED)
    return code == _DIED
