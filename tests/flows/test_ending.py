"""Ended by SIGTERM or from Prefect's page: no child is left, locks are let go of, MLflow says so, and it goes on."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from tests.clone import LONGEST_S, Clone, Writer
from tests.live import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SLOW = '''

def slowly(outputs, targets):
    """Cross entropy that takes its time while there is a file that asks for it."""
    import os
    import time

    if torch.is_grad_enabled() and os.path.exists("slow"):
        time.sleep(0.2)
    return nn.functional.cross_entropy(outputs, targets)
'''


def _small(settings: dict[str, Any]) -> None:
    settings["training"]["loss"] = "own_project:slowly"
    settings["baseline"]["recipe"].update(epochs=3)
    settings["analyze"].update(rates=[0.5])
    settings["prune"].update(iterations=2, recipes=settings["prune"]["recipes"][:1], max_accuracy_drop=0.9)


@pytest.fixture(scope="module")
def new_slow_clone(
    tmp_path_factory: pytest.TempPathFactory, code: Path, project_writer: Writer, home: Path
) -> Callable[[], Clone]:
    def write(root: Path) -> Path:
        found = project_writer(root, _small)
        with (root / "own_project.py").open("a", encoding="utf-8") as own:
            own.write(SLOW)
        return found

    return lambda: Clone(tmp_path_factory.mktemp("clone"), code, write, home)


@pytest.fixture(scope="module")
def undisturbed(new_slow_clone: Callable[[], Clone]) -> dict[str, str]:
    clone = new_slow_clone()
    clone.flow()
    return clone.hashes()


def wait_for_second_attempt(clone: Clone) -> None:
    """Wait until MLflow has the first attempt, and the second one trains."""
    deadline = time.monotonic() + 3 * LONGEST_S  # servers, worker and run share a machine with whatever else runs
    while not (clone.root / "mlflow.db").exists() or clone.recorded("select count(*) from metrics") == [(0,)]:
        assert time.monotonic() < deadline, "it never came to the second attempt"
        time.sleep(0.1)
    time.sleep(1)


def assert_ended_cleanly(clone: Clone) -> None:
    with FileLock(clone.root / "artifacts/.lock", timeout=0):
        pass
    assert clone.recorded("select status from runs") == [("KILLED",)]
    (clone.root / "slow").unlink()


def test_sigterm_ends_cleanly_and_the_same_command_goes_on(
    new_slow_clone: Callable[[], Clone], undisturbed: dict[str, str]
) -> None:
    clone = new_slow_clone()
    (clone.root / "slow").touch()
    process = clone.start(sys.executable, "-m", "flows.compress")
    wait_for_second_attempt(clone)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "Prefect's own server"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert_ended_cleanly(clone)
    printed = clone.flow()
    assert "baseline: is current" in printed
    assert "resuming after 1 attempts" in printed
    assert clone.hashes() == undisturbed
    clone.assert_tracked_once()


def test_cancelling_on_prefects_page_ends_cleanly_and_the_next_run_goes_on(
    new_slow_clone: Callable[[], Clone], undisturbed: dict[str, str]
) -> None:
    clone = new_slow_clone()
    (clone.root / "slow").touch()
    with served(clone) as here:
        before = here.family()
        _, run = here.start("compress")
        wait_for_second_attempt(clone)
        assert here.family() - before, "the run's process"
        here.ask(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}})
        (ended,) = here.wait_for("compress", 1, "CANCELLED")
        assert ended["state_type"] == "CANCELLED", ended["state"]["message"]
        assert psutil.wait_procs(here.family() - before, timeout=30)[1] == []
        assert_ended_cleanly(clone)
        here.start("compress")
        again = here.wait_for("compress", 2, "CANCELLED")[1]
        assert again["state_type"] == "COMPLETED", again["state"]["message"]
    assert clone.hashes() == undisturbed
    clone.assert_tracked_once()
