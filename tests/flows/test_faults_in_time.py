"""What a wrong setting costs at the command line: one message and exit code 2, in seconds of the processor's time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.environment import REPOSITORY

LONGEST_S = 2.0
"""Beyond what importing the command's packages takes, so that a busy machine changes little."""


def _run(*command: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run Python, and return what came of it and the processor's seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_a_fault_in_the_settings_is_told_within_seconds(write_params: Callable[..., Path]) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["run"]["threads"] = 10**9
        settings["model"]["weights"] = "/dev/zero"
        settings["training"]["metric"] = "own_project:smal"

    write_params(change)
    _, imported_s = _run("-c", "import flows.compress, flows.pipeline")
    done, taken_s = _run("-m", "flows.compress", "--no-commit")
    assert done.returncode == 2
    for text in ("has 3 faults", "run.threads: found 1000000000", "/dev/zero is no file", "did you mean 'small'"):
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not Path("artifacts").exists()
    assert taken_s - imported_s < LONGEST_S
