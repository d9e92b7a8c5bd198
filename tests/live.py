"""Programs beside a test, and Prefect's API as a page uses it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.clone import Clone

LONGEST_S = 240.0
_TRIES = 10


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
    """Get, or post a body; return the answer. A server that is too busy (503) did nothing: it is asked again."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for left in reversed(range(_TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as fault:
            if fault.code != HTTPStatus.SERVICE_UNAVAILABLE or not left:
                raise
            time.sleep(2)
    raise AssertionError


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


class Served:
    """A clone's own servers, pool and worker."""

    def __init__(self, clone: Clone, api: str, process: psutil.Process) -> None:
        self.clone = clone
        self.api = api
        self._process = process

    def family(self) -> set[psutil.Process]:
        """Return the processes of servers, worker and runs."""
        return set(self._process.children(recursive=True))

    def password(self) -> bytes:
        return (Path(self.clone.environment["PREFECT_HOME"]) / "password").read_bytes().strip()

    def ask(self, place: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Post to Prefect's API; return the status and the answer."""
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {b64encode(self.password()).decode()}"}
        request = urllib.request.Request(f"{self.api}/{place}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def deployment(self, name: str) -> str:
        _, found = self.ask("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return str(found[0]["id"])

    def start(self, name: str, **asked: Any) -> tuple[int, Any]:
        return self.ask(f"deployments/{self.deployment(name)}/create_flow_run", asked)

    def wait_for(self, name: str, count: int, *also: str) -> list[dict[str, Any]]:
        """Wait until a deployment has so many runs that ended (or are in these states too); the oldest comes first."""
        wanted = {"deployments": {"name": {"any_": [name]}}, "sort": "START_TIME_ASC"}
        wanted["flow_runs"] = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", *also]}}}
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline:
            _, runs = self.ask("flow_runs/filter", wanted)
            if len(runs) >= count:
                return list(runs)
            time.sleep(2)
        raise AssertionError(f"{name} has not run {count} times: {self.ask('flow_runs/filter', {})}")


@contextmanager
def served(clone: Clone, *, ends_with: int = 0) -> Iterator[Served]:
    """Run a clone's servers and worker while the block lasts, and end them; any other code is an end by itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.serve"],
        cwd=clone.root,
        env=clone.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    family: list[psutil.Process] = []
    try:
        assert process.stdout
        printed = [line for line in iter(process.stdout.readline, "Ctrl-C ends all of it\n") if line]
        assert process.poll() is None, printed
        here = psutil.Process(process.pid)
        family = here.children(recursive=True)
        yield Served(clone, f"{printed[0].split()[1]}/api", here)
    finally:
        if ends_with == 0:
            process.send_signal(signal.SIGINT)
        assert process.wait(120) == ends_with
        assert psutil.wait_procs(family, timeout=5)[1] == [], "a child outlived it"
