"""Run the pipeline by its schedule, on this machine, until Ctrl-C: `python -m flows.serve`.

    Prefect's server ─► work pool `secateur` ─► worker ─► a process for each run of a deployment in prefect.yaml
    MLflow's server

Servers that the environment or the settings name are used instead of new ones; this machine is then only a worker.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from flows.command import bare_parser
from flows.servers import Programs, ServiceError, installed, show_pages, until_interrupted
from flows.worker import POOL
from tasks.config.schema import Settings
from tasks.environment import REPOSITORY, is_installed
from tasks.registry.dvc_repo import DvcRepo

NAME = "serve"
JOB_TEMPLATE = Path(__file__).with_name("work-pool.json")
_LONGEST_SETUP_S = 180


def serve(settings: Settings, started: Programs) -> None:
    """Start servers, work pool and worker, and deploy what prefect.yaml in the current folder names.

    Raises:
        WorkspaceError: The folder isn't a DVC repository.
        ServiceError: Another `serve` runs here, or a program doesn't start.
    """
    DvcRepo()
    stay_alone(started)
    environment = {
        "PREFECT_API_URL": show_pages(settings, started),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
        "PWD": str(Path.cwd()),  # what prefect.yaml writes into the deployments
    }
    if not is_installed():  # the worker's processes have to find this code
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    template = ("--base-job-template", str(JOB_TEMPLATE))
    _set_up(["prefect", "work-pool", "create", POOL, "--type", "process", *template, "--overwrite"], environment)
    _set_up(["prefect", "--no-prompt", "deploy", "--all"], environment)
    _refuse_unknown_parameters(environment["PREFECT_API_URL"])
    started.start("worker", ["python", "-P", "-m", "flows.worker"], environment)  # not a `flows/` of the user's
    sys.stdout.write(f"{'worker':<8} runs the deployments of prefect.yaml in {Path.cwd()}\n")


def stay_alone(started: Programs) -> None:
    """Hold a lock while the programs run: two schedulers on one database would race for its runs.

    Raises:
        ServiceError: Another process holds it.
    """
    started.logs.mkdir(parents=True, exist_ok=True)
    lock = FileLock(started.logs / ".serve.lock")
    try:
        started.hold(lock)
    except Timeout as error:
        raise ServiceError(f"another `secateur serve` holds {lock.lock_file}; end that one first") from error


def _refuse_unknown_parameters(api: str) -> None:
    """Make the server refuse parameters that the form doesn't have; `prefect deploy` has no option for that."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentUpdate

    with SyncPrefectClient(api, auth_string=os.environ.get("PREFECT_API_AUTH_STRING")) as client:
        for found in client.read_deployments():
            form = {**(found.parameter_openapi_schema or {}), "additionalProperties": False}
            client.update_deployment(found.id, DeploymentUpdate(parameter_openapi_schema=form))


def _set_up(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [installed(command[0]), *command[1:]],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_LONGEST_SETUP_S,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")


def main(arguments: Sequence[str] | None = None, name: str = NAME) -> None:
    """Run it from the command line; its messages are signed with the name."""
    given = bare_parser(NAME, "Run what prefect.yaml deploys, with servers and a worker, until Ctrl-C.")
    until_interrupted(name, given.parse_args(arguments), serve)


if __name__ == "__main__":
    main()
