"""Prefect's server of one process: flows go on without one that doesn't come up, and none outlives its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.environment import REPOSITORY

FLOWS = """
import logging, sys
import tasks
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from flows import offline, temporary_server

def twice(number):
    return 2 * number

def body(number):
    if len(sys.argv) > 1:
        print(temporary_server._Owned.process.pid, flush=True)
        sys.stdin.read()
    return inner(number) + inner(number)

inner = offline.Flow(twice, name="inner", typed=False)
outer = offline.Flow(body, name="outer", typed=False)
print(outer(1))
"""


def environment(home: Path, longest_s: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    given = {"PREFECT_HOME": str(home), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(longest_s)}
    return kept | given | {"PYTHONPATH": str(REPOSITORY)}


@pytest.mark.thorough
def test_flows_go_on_without_a_server_that_does_not_come_up_in_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FLOWS]
    given = environment(tmp_path, 1)
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
    wanted = "Prefect's temporary server didn't come up within 1 s: flows go on without its engine\n"
    assert done.stderr == wanted


@pytest.mark.slow
def test_server_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FLOWS, "wait"],
        env=environment(tmp_path, 300),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    server = psutil.Process(int(process.stdout.readline()))
    assert server.is_running()
    process.kill()
    process.wait()
    assert psutil.wait_procs([server], timeout=60)[1] == []
