"""A temporary server whose flow was killed is ended by the next flow, and no other is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.abandoned import end_abandoned

SERVER = ["-c", "import time; time.sleep(60)", "prefect.server.api.server:create_app"]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PREFECT_HOME": str(home), "PREFECT__SERVER_EPHEMERAL": "1"}


def abandoned(home: Path) -> psutil.Process:
    """Start what looks like a server from a process that ends at once."""
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, *{SERVER!r}], stdout=2).pid)"
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment(home), stdout=subprocess.PIPE, check=True
    ).stdout
    return psutil.Process(int(printed))


def test_only_servers_of_this_home_whose_flow_is_gone_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    gone, elsewhere = abandoned(tmp_path / "home"), abandoned(tmp_path / "elsewhere")
    alive = psutil.Popen([sys.executable, *SERVER], env=environment(tmp_path / "home"))
    try:
        deadline = time.monotonic() + 10
        while SERVER[-1] not in alive.cmdline() and time.monotonic() < deadline:
            time.sleep(0.01)
        end_abandoned()
        assert psutil.wait_procs([gone], timeout=10)[1] == []
        assert alive.is_running()
        assert elsewhere.is_running()
    finally:
        for process in (alive, elsewhere):
            process.kill()
        alive.wait()
