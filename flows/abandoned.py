"""Prefect's temporary server: a flow that has no other starts one for itself, and leaves it behind if it is killed."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_SERVER = "prefect.server.api.server:create_app"


def end_abandoned() -> None:
    """End the temporary servers of this PREFECT_HOME whose flow is gone: nobody else knows where they listen."""
    for process in psutil.process_iter():
        try:
            if _is_ours(process) and not _has_its_flow(process):
                process.terminate()
        except psutil.Error:  # it has ended meanwhile, or is another user's
            continue


def _is_ours(process: psutil.Process) -> bool:
    if _SERVER not in process.cmdline():
        return False
    given = process.environ()
    return "PREFECT__SERVER_EPHEMERAL" in given and given.get("PREFECT_HOME") == os.environ["PREFECT_HOME"]


def _has_its_flow(process: psutil.Process) -> bool:
    """Say whether Python started it and runs still; what adopts the children of the dead is no Python."""
    parent = process.parent()
    return parent is not None and Path((parent.cmdline() or [""])[0]).name.startswith("python")
