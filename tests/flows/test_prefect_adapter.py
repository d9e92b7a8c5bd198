"""Where Prefect's engine runs: in what Prefect started, and where it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

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

assert uses_prefect()
assert all(isinstance(getattr(deployed, name), prefect.Flow) for name in ("cleanup", "compress", "promote", "restore"))
assert body_of(deployed.compress) is not deployed.compress
"""


def test_command_alone_imports_nothing_of_prefects_and_a_deployment_runs_in_its_engine() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DVC_STAGE", "PREFECT_API_URL")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
