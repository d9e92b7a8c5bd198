"""Programs beside a test, and Prefect's API as a page uses it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LONGEST_S = 240.0


@contextmanager
def started(command: list[str], root: Path, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run a program in a group of its own while the block lasts."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def prefect_server(root: Path, environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run Prefect's server; give the address of its API."""
    port = free_port()
    tools = Path(environment["PATH"].partition(os.pathsep)[0])
    command = [str(tools / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}/api"
    with started(command, root, environment, log):
        wait_until("the server", lambda: ask(f"{address}/health") is True, log)
        yield address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, body: Any = None) -> Any:
    """Get, or post a body; return the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read() or b"null")


def wait_until(what: str, holds: Callable[[], bool], log: Path) -> None:
    """Wait until something holds; a server that doesn't answer yet counts as no."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(f"{what}: not within {LONGEST_S:.0f} s\n{log.read_text(errors='replace')[-3000:]}")
