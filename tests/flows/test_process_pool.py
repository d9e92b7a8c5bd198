"""Calls in several processes: their faults, their end, and that an analysis comes out the same."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.prefect_adapter import in_processes
from pruning.errors import WorkspaceError
from tasks.environment import REPOSITORY
from tasks.stages.analyze import analyze
from tests.shop import Shop

ASKING = """
import time
from flows.prefect_adapter import in_processes
list(in_processes(time.sleep, [(0.0,), (600.0,), (600.0,)], 2))
"""

IN_A_FLOW = """
import sys
from flows.prefect_adapter import flow, use_prefect
from flows.prefect_adapter import in_processes
from tests.flows.test_process_pool import note_server

@flow(name="asking")
def asking():
    list(in_processes(note_server, [(place,) for place in sys.argv[1:]], 2))

use_prefect()
asking()
"""


def note_server(place: str) -> None:
    from prefect.settings import PREFECT_API_URL

    Path(place).write_text(str(PREFECT_API_URL.value()), encoding="utf-8")


def test_killed_process_is_told_clearly_and_leaves_none_behind() -> None:
    with pytest.raises(WorkspaceError, match=r"one of 2 processes was killed.*machine\.processes"):
        list(in_processes(os._exit, [(9,), (9,)], 2))
    assert not multiprocessing.active_children()


def test_fault_of_one_call_ends_the_others() -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError, match="non-negative"):
        list(in_processes(time.sleep, [(-1.0,), (300.0,)], 2))
    assert time.monotonic() - begin < 200
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_end_when_the_one_that_asked_for_them_is_killed() -> None:
    asking = subprocess.Popen([sys.executable, "-c", ASKING], cwd=REPOSITORY)
    workers: list[psutil.Process] = []
    until = time.monotonic() + 120
    while len(workers) < 3 and time.monotonic() < until:  # two, and the tracker of what they share
        time.sleep(0.5)
        workers = psutil.Process(asking.pid).children()
    time.sleep(10)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert len(workers) >= 3
    assert not alive


@pytest.mark.slow
def test_processes_of_a_flow_use_its_server_and_start_none(tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "home")}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-c", IN_A_FLOW, *map(str, places)]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=300)
    first, second = (place.read_text(encoding="utf-8") for place in places)
    assert first == second
    assert first.startswith("http://127.0.0.1:")


@pytest.mark.slow
def test_analysis_in_two_processes_gives_the_same_bytes(shop: Shop) -> None:
    folder = shop.workspace.folder("analysis")
    kept = {path.name: path.read_bytes() for path in folder.glob("curves.*")}
    shutil.rmtree(folder)
    shop.change(lambda settings: settings.update(machine={"processes": 2}))
    calls: list[int] = []

    def counted(*arguments: object) -> object:
        for done in in_processes(*arguments):  # type: ignore[arg-type]
            calls.append(done)
            yield done

    analyze(shop.settings, shop.workspace, counted)  # type: ignore[arg-type]
    assert len(kept) == 2
    assert calls == [1, 2]
    assert {path.name: path.read_bytes() for path in folder.glob("curves.*")} == kept
    assert not Path("artifacts/.analysis.unfinished").exists()
