"""Ended by a signal or from Prefect's page: no child is left, locks are let go of, MLflow says so, and it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
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


MOMENTS: tuple[tuple[str, float | str, signal.Signals], ...] = (
    ("imports begin", 0.0, signal.SIGTERM),
    ("imports go on", 2.0, signal.SIGINT),
    ("settings are checked", "write artifacts/.probe", signal.SIGTERM),
    ("temporary server starts", "temporary_server.py", signal.SIGTERM),
    ("data are prepared", "rename data", signal.SIGTERM),
    ("baseline is trained", "write artifacts/.training.unfinished", signal.SIGTERM),
    ("sensitivities are measured", "write artifacts/.analysis.unfinished", signal.SIGINT),
    ("first attempt", "rename artifacts/iterations/ledger.json", signal.SIGTERM),
    ("second attempt", "write artifacts/iterations/.02.partial", signal.SIGTERM),
    ("export", "write artifacts/.onnx.partial", signal.SIGTERM),
    ("report", "write artifacts/.report.partial", signal.SIGHUP),
    ("registration", "rename mlartifacts", signal.SIGTERM),
)
"""(what happens, after how many seconds or at which event of `sitecustomize` or child of the process, the signal)"""

ENDS_WITHIN_S = 10.0


def _command_of(process: psutil.Process) -> str:
    """The command line of a process; empty where it has ended since it was found."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for_moment(process: subprocess.Popen[bytes], moment: float | str, trace: Path) -> None:
    if isinstance(moment, float):
        while psutil.Process(process.pid).num_threads() < 2:  # before, Python itself starts, and nothing of ours runs
            time.sleep(0.005)
        time.sleep(moment)
        return
    deadline = time.monotonic() + LONGEST_S
    while not (trace.exists() and moment in trace.read_text(encoding="utf-8")):
        assert process.poll() is None, f"it ended before: {moment}"
        assert time.monotonic() < deadline, moment
        here = psutil.Process(process.pid)
        if moment.endswith(".py") and any(moment in _command_of(child) for child in here.children()):
            return
        time.sleep(0.005)


def left_behind(mark: str) -> list[psutil.Process]:
    """Return the processes that have something in their environment, whatever group or parent they have."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SECATEUR_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_signal_to_the_whole_group_ends_a_run_at_any_moment_and_it_goes_on_to_the_same_bytes(
    new_slow_clone: Callable[[], Clone], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    clone = new_slow_clone()
    watcher = str(Path(__file__).parent / "killing")
    for position, (what, moment, number) in enumerate(MOMENTS):
        mark, trace, said = f"{tmp_path}/{position}", tmp_path / f"{position}.trace", tmp_path / f"{position}.err"
        more = {"SECATEUR_TEST": mark, "PYTHONPATH": watcher, "KILL_TRACE": str(trace), "KILL_ROOT": str(clone.root)}
        with said.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.compress", *(["--prefect"] if position % 2 else [])],
                cwd=clone.root,
                env=clone.environment | more,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )
        wait_for_moment(process, moment, trace)
        began = time.monotonic()
        os.killpg(process.pid, number)
        assert process.wait(60) == 128 + number, what
        seconds = time.monotonic() - began
        assert left_behind(mark) == [], what
        message = said.read_text(encoding="utf-8")
        print(f"{what}: {number.name}, ended after {seconds:.1f} s")
        assert seconds < ENDS_WITHIN_S, what
        assert message.count("compress: ") == 1, f"{what}: {message}"
        assert message.count(f"compress: ended by {number.name}; run the same command again to continue") == 1
        assert "Traceback" not in message, f"{what}: {message}"
        assert "goes on without it" not in message, f"{what}: {message}"
        if (clone.root / "mlflow.db").exists():
            assert clone.recorded("select count(*) from registered_model_aliases") == [(0,)], what
    clone.flow()
    assert clone.hashes() == undisturbed
    clone.assert_tracked_once()


def test_sigterm_in_mid_loop_is_known_to_mlflow_and_the_same_command_goes_on(
    new_slow_clone: Callable[[], Clone], undisturbed: dict[str, str]
) -> None:
    clone = new_slow_clone()
    (clone.root / "slow").touch()
    process = clone.start(sys.executable, "-m", "flows.compress", "--prefect")
    wait_for_second_attempt(clone)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "Prefect's own server"
    os.killpg(process.pid, signal.SIGTERM)
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


def test_sigterm_to_the_worker_ends_its_run_too_and_the_next_one_goes_on(
    new_slow_clone: Callable[[], Clone], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    clone = new_slow_clone()
    clone.environment["PREFECT_HOME"] = str(tmp_path)  # of which the worker's log and the list of runs are read
    (clone.root / "slow").touch()
    with served(clone, ends_with=2) as here:  # without a worker it is of no use
        before = here.family()
        here.start("compress")
        wait_for_second_attempt(clone)
        (worker,) = [found for found in before if "flows.worker" in found.cmdline()]
        run = here.family() - before
        assert run
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        left = psutil.wait_procs({worker, *run}, timeout=60)[1]
        print(f"ended after {time.monotonic() - began:.1f} s")
        assert left == []
        assert time.monotonic() - began < ENDS_WITHIN_S
    said = (Path(clone.environment["PREFECT_HOME"]) / "logs/worker.log").read_text(encoding="utf-8")
    for name in ("worker", "compress"):
        assert said.count(f"{name}: ended by SIGTERM; run the same command again to continue") == 1, said
    assert "Traceback" not in said, said
    assert_ended_cleanly(clone)
    with served(clone) as here:
        (ended,) = here.wait_for("compress", 1, "CANCELLED")
        assert ended["state_type"] == "CRASHED", ended["state"]
        here.start("compress")
        again = here.wait_for("compress", 2, "CANCELLED")[1]
        assert again["state_type"] == "COMPLETED", again["state"]["message"]
    assert clone.hashes() == undisturbed
    clone.assert_tracked_once()
