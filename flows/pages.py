"""Show Prefect's and MLflow's pages until Ctrl-C: `python -m flows.pages`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from flows.command import DEFAULT_PARAMS, FAULT
from pruning.errors import SecateurError
from tasks.settings import load
from tasks.tracking import absolute

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
LONGEST_START_S = 180.0
PATIENCE_S = 10.0


def main() -> None:
    """Start both servers, print where they are, and stop both when either ends or Ctrl-C is pressed."""
    try:
        store = absolute(load(DEFAULT_PARAMS).tracking.uri)
    except SecateurError as fault:
        sys.stderr.write(f"pages: {fault}\n")
        sys.exit(FAULT)
    prefect, mlflow = free_port(PREFECT_PORT), free_port(MLFLOW_PORT)
    commands = {
        f"http://127.0.0.1:{prefect}": ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect)],
        f"http://127.0.0.1:{mlflow}": [
            *("mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow)),
            *("--workers", "1", "--backend-store-uri", store),
        ],
    }
    signal.signal(signal.SIGTERM, _interrupt)
    sys.stderr.write("starting; this takes up to a minute\n")
    servers = [_start(command) for command in commands.values()]
    try:
        for name, port, server in zip(("Prefect", "MLflow"), (prefect, mlflow), servers, strict=True):
            _wait_for(port, server)
            sys.stdout.write(f"{name:<8} http://127.0.0.1:{port}\n")
        sys.stdout.write("Ctrl-C ends both\n")
        sys.stdout.flush()
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            _stop(server)


def free_port(wanted: int) -> int:
    """Return the port that is wanted, or a free one where another program has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a server in a group of its own, so that its workers can be stopped with it."""
    program = Path(sys.executable).with_name(command[0])
    return subprocess.Popen(
        [str(program), *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LONGEST_START_S
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    sys.stderr.write(
        f"pages: the server on port {port} did not start; run `prefect server start` or `mlflow server` to see\n"
    )
    raise KeyboardInterrupt


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            return
        try:
            server.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            continue
        return


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
