"""Work of parts for the tests of fan-out: workers import it by its name."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from pruning.errors import ModelError
from pruning.io.files import replace_file
from tasks.config.schema import Settings
from tasks.workspace import Workspace

log = logging.getLogger("secateur")


def write(settings: Settings, workspace: Workspace, files: Sequence[Path], text: str, seconds: float = 0.0) -> None:
    """Write a text, after a while; and say so."""
    time.sleep(seconds)
    log.info("wrote %s", text)
    replace_file(files[0], f"{text} {settings.run.seed} {workspace.root}".encode())


def die_first(settings: Settings, workspace: Workspace, files: Sequence[Path], asker: int) -> None:
    """Kill this process in the middle of the work, unless it is the one that asked."""
    if os.getpid() != asker:
        os.kill(os.getpid(), signal.SIGKILL)
    write(settings, workspace, files, "after all")


def fail(settings: Settings, workspace: Workspace, files: Sequence[Path]) -> None:
    """Raise what a user's code might."""
    raise ModelError("the loss is not finite")
