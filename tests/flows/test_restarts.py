"""Prefect's and MLflow's servers stopped in mid-run and started again: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.clone import Clone
from tests.live import ask, free_port, wait_until

pytestmark = pytest.mark.slow


class Servers:
    """Both servers of a clone, on ports that stay the same; MLflow's keeps the artifacts too."""

    def __init__(self, clone: Clone, logs: Path) -> None:
        self.clone = clone
        self.logs = logs
        self.ports = {"prefect": free_port(), "mlflow": free_port()}
        self.running: list[subprocess.Popen[bytes]] = []

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def start(self) -> None:
        place = ("--host", "127.0.0.1", "--port")
        commands: dict[str, tuple[str, ...]] = {
            "prefect": ("prefect", "server", "start", *place, str(self.ports["prefect"])),
            "mlflow": (
                *("mlflow", "server", *place, str(self.ports["mlflow"]), "--workers", "1"),
                *("--backend-store-uri", "sqlite:///mlflow.db", "--serve-artifacts"),
            ),
        }
        for name, command in commands.items():
            with (self.logs / f"{name}.log").open("ab") as log:
                self.running.append(
                    subprocess.Popen(
                        command,
                        cwd=self.clone.root,
                        env=self.clone.environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        self._wait("prefect", "/api/health")
        self._wait("mlflow", "/health")

    def _wait(self, name: str, place: str) -> None:
        def answers() -> bool:
            try:
                ask(f"{self.address(name)}{place}")
            except json.JSONDecodeError:
                return True
            except urllib.error.HTTPError:
                return False
            return True

        wait_until(name, answers, self.logs / f"{name}.log")

    def kill(self) -> None:
        for process in self.running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.running.clear()


def states(servers: Servers) -> list[tuple[str, str]]:
    """Every run that Prefect knows: its name's flow and its state."""
    runs = ask(f"{servers.address('prefect')}/api/flow_runs/filter", {})
    flows = {flow["id"]: flow["name"] for flow in ask(f"{servers.address('prefect')}/api/flows/filter", {})}
    return sorted((flows[run["flow_id"]], run["state_type"]) for run in runs)


def test_run_goes_on_without_both_servers_and_the_next_completes_their_records(
    new_clone: Callable[[], Clone], tmp_path: Path, project_writer: Callable[..., Path]
) -> None:
    clone = new_clone()
    servers = Servers(clone, tmp_path)
    project_writer(clone.root, lambda s: s["tracking"].update(uri=servers.address("mlflow")))
    try:
        servers.start()
        clone.environment["PREFECT_API_URL"] = f"{servers.address('prefect')}/api"
        with (tmp_path / "run.log").open("wb") as log:
            run = subprocess.Popen(
                [sys.executable, "-m", "flows.compress", "--prefect"],
                cwd=clone.root,
                env=clone.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        wait_until("the first attempt", lambda: (clone.root / "artifacts/iterations/01").is_dir(), tmp_path / "run.log")
        servers.kill()
        began = time.monotonic()
        assert run.wait(300) == 2
        print(f"the run ended {time.monotonic() - began:.0f} s after both servers")
        said = (tmp_path / "run.log").read_text(encoding="utf-8")
        assert "Traceback" not in said
        assert "without MLflow for now" in said
        assert "went away: prune goes on without it" in said
        assert "doesn't answer: export goes on without it" in said
        assert "compress: MLflow's store" in said
        assert "up to date" in clone.status()
        made = clone.hashes()

        servers.start()
        assert "every stage is current" in clone.flow("compress", "--prefect")
        assert "version 1 is in production" in clone.flow("promote", "--prefect")
        clone.assert_tracked_once()
        assert clone.hashes() == made
        ended = [("compress", "FAILED"), ("promote", "COMPLETED"), ("prune", "COMPLETED")]
        ended += [(name, "COMPLETED") for name in ("analyze", "baseline", "measurements", "prepare", "profile")]
        assert states(servers) == sorted(ended)
        assert not list((Path(clone.environment["PREFECT_HOME"]) / "unreported").iterdir())
        comes_back(clone)
    finally:
        servers.kill()


def comes_back(clone: Clone) -> None:
    """What a server keeps of a version, `mlflow-artifacts:` and all, is all that a restore needs but the data."""
    (uri,) = clone.recorded("select artifact_location from experiments where name = 'tests'")
    assert uri[0].startswith("mlflow-artifacts:")
    printed = clone.run(sys.executable, "-m", "flows.restore", "--version", "1", "--into", "back")
    assert "every hash is as recorded" in printed
    restored: dict[str, Any] = json.loads((clone.root / "back/restored.json").read_text(encoding="utf-8"))
    assert restored["sources"]["artifacts/onnx/model.onnx"] == "MLflow"
    for place, found in restored["files"].items():
        assert sha256((clone.root / "back" / place).read_bytes()).hexdigest() == found, place
