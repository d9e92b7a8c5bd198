"""Prefect's and MLflow's servers and the worker, as child processes: start them, wait for them, end them.

`python -m flows.servers` shows the pages of both servers until Ctrl-C.

The password of Prefect's server is created once, in a file below PREFECT_HOME that only its owner can read. The
pipeline's commands find it there by themselves (`tasks.environment`), and so does the worker.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import subprocess
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from filelock import BaseFileLock

from flows import signals
from flows.command import FAULT, bare_parser
from pruning.errors import SecateurError, SettingsError
from tasks.config.schema import Settings, load
from tasks.environment import password_file
from tasks.registry.mlflow_client import absolute, is_server, open_store
from tasks.workspace import DEFAULT_PARAMS

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def password() -> str:
    """Return the password, `user:secret` as Prefect takes it; it is created the first time.

    Raises:
        SettingsError: Others can read the file, or it doesn't hold a password.
    """
    place = password_file()
    if not place.exists():
        _make(place)
    if place.stat().st_mode & _OTHERS:
        raise SettingsError(
            f"others can read {place}, the password of Prefect's server; delete it, and a new one is made"
        )
    found = place.read_text(encoding="utf-8").strip()
    user, _, secret = found.partition(":")
    if not user or not secret or not found.isprintable() or " " in found:
        raise SettingsError(f"{place} holds no password `user:secret`; delete it, and one is made")
    return found


def _make(place: Path) -> None:
    """Write a new password, whole or not at all; the first process to write wins."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"secateur:{secrets.token_urlsafe(24)}\n")
        place.hardlink_to(beside)
    except FileExistsError:
        pass
    finally:
        beside.unlink()


NAME = "servers"
HOST = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
LONGEST_START_S = 180.0
PATIENCE_S = 15.0
_POLL_S = 0.5
_LONGEST_END_S = 60.0  # for servers, a worker and its runs, one after the other


class ServiceError(SecateurError):
    """A child program can't be started, or has ended."""


@dataclass
class Programs:
    """The child programs, and where their output goes.

    Attributes:
        logs: A folder with one file for each program, begun anew with each start.
    """

    logs: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _held: list[BaseFileLock] = field(default_factory=list)

    def hold(self, lock: BaseFileLock) -> None:
        """Hold a lock as long as programs run.

        Raises:
            Timeout: Another process holds it.
        """
        lock.acquire(blocking=False)
        self._held.append(lock)

    def start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a program of this environment in its own process group, so that Ctrl-C reaches this process first."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [installed(command[0]), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def wait_for(self, name: str, port: int) -> None:
        """Wait until a program listens.

        Raises:
            ServiceError: It ended, or took longer than it may.
        """
        deadline = time.monotonic() + LONGEST_START_S
        while self._running[name].poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    return
            if time.monotonic() > deadline:
                raise ServiceError(f"{name} did not start in {LONGEST_START_S:.0f} s; {self._log(name)} says why")
            time.sleep(_POLL_S)
        raise ServiceError(f"{name} ended while starting; {self._log(name)} says why")

    def watch(self) -> None:
        """Wait until one of the programs ends.

        Raises:
            ServiceError: One of the programs ended.
        """
        while True:
            for name, program in self._running.items():
                if program.poll() is not None:
                    raise ServiceError(f"{name} ended by itself; {self._log(name)} says why")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End all programs with their children, the last one started first: politely, then by force."""
        for program in reversed(self._running.values()):
            family = _family(program.pid)
            program.terminate()
            _, left = psutil.wait_procs(family, timeout=PATIENCE_S)
            for process in left:
                process.terminate()
            for process in psutil.wait_procs(left, timeout=PATIENCE_S)[1]:
                process.kill()
        self._running.clear()
        while self._held:
            self._held.pop().release()

    def _log(self, name: str) -> Path:
        return self.logs / f"{name.lower()}.log"


@contextmanager
def programs() -> Iterator[Programs]:
    """Yield the object that starts programs, and end all of them when the block is left."""
    started = Programs(Path(os.environ["PREFECT_HOME"]) / "logs")
    try:
        yield started
    finally:
        started.stop()


def prefect_server(started: Programs) -> str:
    """Start Prefect's server, or find it where PREFECT_API_URL says; return the address of its API."""
    if address := os.environ.get("PREFECT_API_URL"):
        return address
    port = free_port(PREFECT_PORT)
    secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or password()
    given = {
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(_pages(port)),
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",  # otherwise the pages ask port 4200, whatever runs there
    }
    started.start("Prefect", ["prefect", "server", "start", "--host", HOST, "--port", str(port)], given)
    started.wait_for("Prefect", port)
    os.environ["PREFECT_API_AUTH_STRING"] = secret  # for whatever else is started here
    return f"http://{HOST}:{port}/api"


def how_to_log_in() -> str:
    """Say which password the page of the server asks for."""
    if os.environ.get("PREFECT_API_URL"):
        return ""
    if os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        return "  (log in with what PREFECT_SERVER_API_AUTH_STRING holds)"
    return f"  (log in with the line in {password_file()})"


def mlflow_server(started: Programs, settings: Settings) -> str:
    """Start MLflow's server on the store of the settings, or find it there; return its address.

    Where MLFLOW_BACKEND_STORE_URI is set, the server keeps its records there, and the settings name the server.
    """
    uri, store = settings.tracking.uri, dict[str, str]()
    if is_server(uri):
        if "MLFLOW_BACKEND_STORE_URI" not in os.environ:
            return uri
        port = urlsplit(uri).port or MLFLOW_PORT
    else:
        open_store(uri)  # a server killed while it creates the tables would leave half of them
        port, store = free_port(MLFLOW_PORT), {"MLFLOW_BACKEND_STORE_URI": absolute(uri)}
    command = ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"{HOST}:{port},localhost:{port}", "--cors-allowed-origins", ",".join(_pages(port))]
    # The store is not on the command line, which every user of the machine can read: there may be a password in it.
    started.start("MLflow", command, store)
    started.wait_for("MLflow", port)
    return f"http://{HOST}:{port}"


def _pages(port: int) -> list[str]:
    """Return the origins of a server's own pages; pages of other origins can't read its answers."""
    return [f"http://{HOST}:{port}", f"http://localhost:{port}"]


def free_port(wanted: int) -> int:
    """Return the wanted port, or a free one if another program has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def installed(program: str) -> str:
    """Return the path of a program in this environment."""
    return str(Path(sys.executable).with_name(program))


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def show_pages(settings: Settings, started: Programs) -> str:
    """Start both servers and print where their pages are; return the address of Prefect's API."""
    sys.stderr.write("starting; this takes up to a minute\n")
    sys.stderr.flush()
    api = prefect_server(started)
    mlflow = mlflow_server(started, settings)
    sys.stdout.write(f"{'Prefect':<8} {api.removesuffix('/api')}{how_to_log_in()}\n{'MLflow':<8} {mlflow}\n")
    sys.stdout.flush()
    return api


def until_interrupted(name: str, options: Namespace, run: Callable[[Settings, Programs], object]) -> None:
    """Start programs and keep them until Ctrl-C or until one ends by itself, which is a fault.

    Args:
        name: The command's, which its messages are signed with.
        options: Of the command line.
        run: Starts the programs.
    """
    signals.watch(name, patience_s=_LONGEST_END_S)
    try:
        settings = load(DEFAULT_PARAMS)
        with programs() as started:
            run(settings, started)
            sys.stdout.write("Ctrl-C ends all of it\n")
            sys.stdout.flush()
            started.watch()
    except SystemExit:
        if not signals.asked():
            raise
    except (SecateurError, OSError) as fault:
        if options.debug:
            traceback.print_exc()
        sys.stderr.write(f"{name}: {fault}\n")
        sys.exit(FAULT)


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> None:
    """Run it from the command line; its messages are signed with the name."""
    given = bare_parser(NAME, "Show Prefect's and MLflow's pages until Ctrl-C.")
    until_interrupted(name, given.parse_args(arguments), show_pages)


if __name__ == "__main__":
    main()
