"""A promotion that waits for a person, on a real server: its process ends, and another goes on after the yes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.environment import REPOSITORY
from tasks.registry import mlflow_models
from tests.live import ask, prefect_server, started, wait_until

pytestmark = pytest.mark.slow

SERVE = "from flows.deployments import promote; promote.serve('by-hand')"


@pytest.fixture
def api(shop: Any, tmp_path: Path) -> Iterator[str]:
    """A server, and a process that runs the flow as a deployment, in the project's folder."""
    for name in ("pruning", "zoo", "tasks", "flows"):
        shutil.copytree(REPOSITORY / name, shop.root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shop.change(lambda s: s["promote"].update(require_approval=True))
    tools = Path(sys.executable).parent
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DVC_STAGE")},
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": str(shop.root),
    }
    with prefect_server(shop.root, environment, tmp_path / "server.log") as address:
        environment["PREFECT_API_URL"] = address
        with started([sys.executable, "-c", SERVE], shop.root, environment, tmp_path / "serve.log"):
            named = f"{address}/deployments/name/promote/by-hand"
            wait_until("the deployment", lambda: bool(ask(named)["id"]), tmp_path / "serve.log")
            yield address


def in_production(shop: Any) -> str | None:
    found = mlflow_models.at(shop.settings, "production")
    return found.number if found else None


def test_run_waits_for_a_yes_to_these_figures_and_a_no_leaves_production_alone(
    shop: Any, api: str, tmp_path: Path
) -> None:
    log = tmp_path / "serve.log"
    deployment = ask(f"{api}/deployments/name/promote/by-hand")["id"]

    def ask_for(answer: dict[str, Any]) -> None:
        run = ask(f"{api}/deployments/{deployment}/create_flow_run", {})["id"]

        def is_at(state: str) -> Callable[[], bool]:
            return lambda: bool(ask(f"{api}/flow_runs/{run}")["state"]["type"] == state)

        wait_until("the question", is_at("PAUSED"), log)
        before = in_production(shop), Path("promotions.jsonl").exists()
        time.sleep(2)  # the process has ended by then
        assert before == (in_production(shop), Path("promotions.jsonl").exists()) == (None, declined)
        ask(f"{api}/flow_runs/{run}/resume", {"run_input": answer})
        wait_until("the end", is_at("COMPLETED"), log)

    declined = False
    ask_for({"approve": False, "comment": "not on a Friday"})
    declined = True
    waiting = mlflow_models.find(shop.settings, number="1").tags["secateur.waiting"]
    ask_for({"approve": True, "comment": "looks right"})
    asked = mlflow_models.find(shop.settings, number="1").tags["secateur.waiting"]
    assert asked != waiting
    assert in_production(shop) == "1"
    no, yes = (json.loads(line) for line in Path("promotions.jsonl").read_text(encoding="utf-8").splitlines())
    assert (no["decision"], no["reasons"]) == ("declined", ["a person said no: not on a Friday"])
    assert (yes["decision"], yes["approved"]) == ("promoted", "looks right")
    seen = {gate["name"]: gate["candidate"] for gate in json.loads(asked)["case"]["gates"]}
    assert {gate["gate"]: gate["candidate"] for gate in yes["gates"]} == seen
