"""Where Prefect's engine runs: in what Prefect started, and where it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.environment import REPOSITORY

ALONE = """
import sys
from flows import cleanup, compress, frontier, promote, restore, rollback, stages
from flows.prefect_adapter import ProgressBar, body_of, call_as_task, flow, publish_table, run_id

@flow(name="own")
def own(number):
    ProgressBar("own", "shown nowhere").update(0.5)
    publish_table("own", [{"number": number}], "shown nowhere")
    assert run_id() is None
    return call_as_task(lambda given: 2 * given, "double", number)

assert own(2) == 4
assert body_of(own) is own.__wrapped__
found = {"prefect", "mlflow", "dvc", "torch._dynamo"} & sys.modules.keys()
assert not found, found

from flows import deployments as deployed  # as Prefect does
from flows.prefect_adapter import uses_prefect
import prefect

assert not uses_prefect()  # it does once one of them runs
assert all(isinstance(getattr(deployed, name), prefect.Flow) for name in ("cleanup", "compress", "promote", "restore"))
assert body_of(deployed.compress) is not deployed.compress
"""


@pytest.mark.thorough
def test_command_alone_imports_nothing_of_prefects_and_a_deployment_runs_in_its_engine() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DVC_STAGE", "PREFECT_API_URL")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


NESTED = """
from flows.prefect_adapter import call_as_flow, use_prefect

use_prefect()


def inner():
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs():
            print(client.read_flow(run.flow_id).name, sorted(run.parameters.items()))


asked = "params.yaml", "artifacts", False
call_as_flow(lambda: call_as_flow(inner, "prepare", "Inner.", *asked), "compress", "Outer.", *asked)
"""


@pytest.mark.slow
def test_pages_show_what_a_run_was_asked_for_and_no_settings(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DVC_STAGE", "PREFECT_API_URL")}
    environment |= {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300"}
    done = subprocess.run(
        [sys.executable, "-c", NESTED], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    asked = [("commit", False), ("params", "params.yaml"), ("workspace", "artifacts")]
    assert sorted(done.stdout.splitlines()) == [f"compress {asked}", f"prepare {asked}"]
