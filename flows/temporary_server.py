"""Prefect's server for one process that has no other: started with the first flow, ended with the process.

It runs in its own session, so that a signal to the process's group doesn't reach it, and the process can still report
how its run ended. It reads from a pipe that the process holds open: when the process ends, however it ends, so does
the server. Nobody else knows its password.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

HOST = "127.0.0.1"
_PATIENCE_S = 3.0
_POLL_S = 0.1
_LOG = Path("logs", "temporary-server.log")

log = logging.getLogger("secateur")


class _Owned:
    """The server of this process, once one was started; `failed` if it didn't come up."""

    process: subprocess.Popen[bytes] | None = None
    failed = False


def is_running() -> bool:
    """Say whether the server that Prefect's settings name is this process's own."""
    return _Owned.process is not None


def start() -> bool:
    """Start the server and name it in Prefect's settings, for all threads and for the processes that this one starts.

    Returns:
        Whether it came up; if it didn't, a warning was logged the first time.
    """
    if _Owned.failed:
        return False
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    longest = get_current_settings().server.ephemeral.startup_timeout_seconds
    password = f"secateur:{secrets.token_urlsafe(24)}"
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        _Owned.process = _start(listening, _settings(password, address))
    atexit.register(_stop)  # after Prefect's own threads have sent what they hold: they end before this is called
    came_up = False
    try:
        came_up = _comes_up(f"{address}/api", longest)
    finally:
        if not came_up:
            _stop(0)
    if not came_up:
        _Owned.failed = True
        log.warning("Prefect's temporary server didn't come up within %d s: flows go on without its engine", longest)
        return False
    os.environ |= {"PREFECT_API_URL": f"{address}/api", "PREFECT_API_AUTH_STRING": password}
    refresh_global_settings_context()
    return True


def _settings(password: str, address: str) -> dict[str, str]:
    return {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
    }


def _start(listening: socket.socket, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    place = Path(os.environ["PREFECT_HOME"]) / _LOG
    place.parent.mkdir(parents=True, exist_ok=True)
    number = listening.fileno()
    with place.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-P", __file__, str(number)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            pass_fds=(number,),
            env={**os.environ, **settings},
            start_new_session=True,
        )


def _comes_up(api: str, longest_s: float) -> bool:
    import httpx

    process, deadline = _Owned.process, time.monotonic() + longest_s
    while process is not None and process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{api}/health", timeout=_PATIENCE_S).is_success:
                return True
        except httpx.TransportError:
            pass
        time.sleep(_POLL_S)
    return False


def _stop(patience_s: float = _PATIENCE_S) -> None:
    """End it: first by closing the pipe that it reads from, then by force."""
    process, _Owned.process = _Owned.process, None
    if process is None:
        return
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(listening: socket.socket) -> None:
    """Run the server until the process that started it closes the pipe or ends."""
    import uvicorn

    app = "prefect.server.api.server:create_app"
    server = uvicorn.Server(uvicorn.Config(app, factory=True, log_level="error", lifespan="on"))

    def end_with_the_owner() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True
        time.sleep(_PATIENCE_S)
        os._exit(0)

    threading.Thread(target=end_with_the_owner, daemon=True).start()
    server.run(sockets=[listening])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
