"""What `prefect.yaml` deploys, and what its form takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tasks.environment import REPOSITORY


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The form that Prefect makes of the flow, in a process of its own: flows are plain functions in this one."""
    code = (
        "import json; from prefect.flows import load_flow_from_entrypoint as load_as_a_worker_does;"
        "load_as_a_worker_does('flows/deployments.py:compress');"
        "import cProfile;"  # of Python's own profile, which a file of ours must not hide
        "from flows import deployments as deployed; from prefect.utilities.callables import parameter_schema;"
        "deployed.compress.validate_parameters({'trial': {'name': 'half', 'target': 0.5}});"
        "deployed.rollback.validate_parameters({'version': 2}); deployed.restore.validate_parameters({'version': 2});"
        "print(json.dumps(parameter_schema(deployed.compress).model_dump()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_form_shows_names_bounds_and_help(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == {"params", "trial"}
    trial = schema["definitions"]["Trial"]
    assert trial["additionalProperties"] is False
    for name, entry in trial["properties"].items():
        assert entry["description"], name
        value = entry["anyOf"][0] if "anyOf" in entry else entry
        bounds = {"pattern", "maxLength"} if value["type"] == "string" else {"minimum", "exclusiveMinimum"}
        assert bounds & value.keys(), name
    assert {"pattern", "maxLength", "description"} <= schema["properties"]["params"].keys()


def deployments() -> dict[str, Any]:
    body = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    return {entry["name"]: entry for entry in body["deployments"]}


def test_nightly_run_cancels_what_would_overlap_and_asks_by_the_settings_alone() -> None:
    nightly = deployments()["compress"]
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    assert [set(schedule) for schedule in nightly["schedules"]] == [{"slug", "cron", "timezone"}]
    assert nightly["parameters"] == {}
    assert nightly["enforce_parameter_schema"] is True


def test_no_deployment_takes_a_command_or_an_environment_from_the_form() -> None:
    from flows.serve import JOB_TEMPLATE

    variables = json.loads(JOB_TEMPLATE.read_text(encoding="utf-8"))["variables"]
    assert variables == {"type": "object", "properties": {}, "additionalProperties": False}
    assert all("job_variables" not in entry["work_pool"] for entry in deployments().values())
