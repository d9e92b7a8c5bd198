"""Both entrances on a small project, as a person uses them: real Prefect, real DVC, real MLflow, real kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.clone import LONGEST_S, Clone
from tests.live import Served, served

pytestmark = pytest.mark.slow


def killed(clone: Clone, *command: str) -> None:
    """Start a command and kill it, with its children, once the first checkpoint of the loop is there."""
    process = clone.start(*command)
    deadline = time.monotonic() + LONGEST_S
    while not (clone.root / "artifacts/iterations/01").is_dir():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "it never reached the first checkpoint"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (clone.root / "artifacts/iterations/stage.json").exists(), "it ended before it could be killed"


@pytest.fixture(scope="module")
def by_flow(new_clone: Callable[[], Clone]) -> Clone:
    clone = new_clone()
    printed = clone.flow()
    for part in ("accuracy (test)", "MACs", "latency, batch 1", "registered       small, version 1"):
        assert part in printed
    assert "Traceback" not in printed
    return clone


def test_flow_leaves_dvc_clean_and_git_with_the_lock_alone(by_flow: Clone) -> None:
    assert "up to date" in by_flow.status()
    assert by_flow.run("git", "status", "--porcelain").split() == ["??", "dvc.lock"]
    assert by_flow.run("dvc", "repro").count("Running stage") == 1, "the one that looks at what is executed"
    by_flow.assert_tracked_once()


def test_second_run_trains_nothing_and_registers_nothing(by_flow: Clone) -> None:
    before = {path: path.stat().st_mtime_ns for path in (by_flow.root / "artifacts").rglob("*") if path.is_file()}
    printed = by_flow.flow()
    assert "every stage is current" in printed
    assert "version 1" in printed
    after = {path: path.stat().st_mtime_ns for path in (by_flow.root / "artifacts").rglob("*") if path.is_file()}
    assert {path for path in before if before[path] != after.get(path)} <= {by_flow.root / "artifacts/.lock"}
    by_flow.assert_tracked_once()


def test_repro_gives_the_same_bytes_and_the_next_flow_registers_them(
    by_flow: Clone, new_clone: Callable[[], Clone]
) -> None:
    clone = new_clone()
    clone.run("dvc", "repro")
    assert clone.hashes() == by_flow.hashes()
    assert "up to date" in clone.status()
    assert not (clone.root / "mlflow.db").exists()
    assert "every stage is current" in clone.flow()
    clone.assert_tracked_once()


def test_killed_flow_is_finished_by_repro_with_the_same_bytes(by_flow: Clone, new_clone: Callable[[], Clone]) -> None:
    clone = new_clone()
    killed(clone, sys.executable, "-m", "flows.compress")
    printed = clone.run("dvc", "repro")
    assert "resuming after" in printed or "attempt 1" in printed
    assert clone.hashes() == by_flow.hashes()
    clone.flow()
    clone.assert_tracked_once()


def test_killed_repro_is_finished_by_the_flow_with_the_same_bytes(
    by_flow: Clone, new_clone: Callable[[], Clone]
) -> None:
    clone = new_clone()
    killed(clone, "dvc", "repro")
    assert "baseline: is current" in clone.flow()
    assert clone.hashes() == by_flow.hashes()
    assert "up to date" in clone.status()
    clone.assert_tracked_once()


def test_fault_inside_the_engine_is_one_message_too(
    new_clone: Callable[[], Clone], project_writer: Callable[..., Path]
) -> None:
    clone = new_clone()
    clone.flow("prepare")
    project_writer(clone.root, lambda s: s["model"].update(kwargs={"width": -1}))
    done = subprocess.run(
        [sys.executable, "-m", "flows.baseline"],
        cwd=clone.root,
        env=clone.environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("baseline: 'own_project:small' called with")
    assert len(done.stderr.splitlines()) == 1


def test_schedule_trains_registers_and_promotes_and_does_nothing_where_nothing_changed(
    tmp_path: Path, code: Path, project_writer: Callable[..., Path]
) -> None:
    clone = Clone(tmp_path / "clone", code, project_writer, tmp_path / "prefect")
    place = clone.root / "prefect.yaml"
    place.write_text(place.read_text(encoding="utf-8").replace("0 3 * * *", "* * * * *"), encoding="utf-8")
    with served(clone) as here:
        first = here.wait_for("compress", 1)[0]
        assert first["state_type"] == "COMPLETED", first["state"]["message"]
        before = clone.hashes()
        promoted = here.wait_for("promote", 1)[0]
        assert promoted["state_type"] == "COMPLETED", promoted["state"]["message"]
        others = here.wait_for("compress", 3)[1:3]
        assert {run["state_type"] for run in others} == {"COMPLETED"}, others
        took = [datetime.fromisoformat(run["end_time"]) - datetime.fromisoformat(run["start_time"]) for run in others]
        print(f"runs on which nothing changed: {', '.join(map(str, took))} after Prefect had started them")
        assert min(took).total_seconds() < 10  # the quicker one: the machine may have been busy with promoting
        assert clone.hashes() == before
        clone.assert_tracked_once()
        for asked in (
            {"parameters": {"params": "os:system"}},
            {"parameters": {"params": "../params.yaml"}},
            {"parameters": {"params": "!!python/object/apply:os.abort []"}},
            {"parameters": {"trial": {"name": "large", "iterations": 10**9}}},
            {"parameters": {"trial": {"name": "code", "factory": "os:abort"}}},
            {"job_variables": {"command": "touch pwned"}},
            {"job_variables": {"env": {"PYTHONPATH": "/tmp"}}},
            {"parameters": {"workspace": "elsewhere"}},
        ):
            status, answer = here.start("compress", **asked)
            assert status in {409, 422}, (asked, answer)
        for name, unknown in (
            ("promote", "approve"),
            ("restore", "into"),
            ("cleanup", "keep_days"),
            ("rollback", "params"),
        ):
            status, answer = here.start(name, parameters={unknown: 1})
            assert status == 409, (name, answer)
        assert_closed_to_others(here)


def assert_closed_to_others(here: Served) -> None:
    """Pages of other origins can't ask Prefect's API anything, nor can anybody without the password."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,authorization"}
    own = here.api.removesuffix("/api")
    for origin in ("https://elsewhere.example", "http://127.0.0.1:9", "null", own):
        answer = httpx.options(f"{here.api}/work_pools/filter", headers={"Origin": origin, **asked})
        assert answer.headers.get("access-control-allow-origin") == (own if origin == own else None)
    assert httpx.post(f"{here.api}/work_pools/filter", json={}).status_code == httpx.codes.UNAUTHORIZED


def test_version_is_promoted_and_comes_back_from_mlflow_dvc_and_git(by_flow: Clone) -> None:
    """The last test of this project: it takes the workspace away."""
    assert "version 1 is in production" in by_flow.flow("promote")
    (line,) = (by_flow.root / "promotions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["decision"] == "promoted"
    by_flow.run("git", "add", "dvc.lock", "promotions.jsonl")
    by_flow.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "promoted")
    wanted = {place: found for place, found in by_flow.hashes().items() if not place.startswith("artifacts/")}
    wanted |= {
        place: found
        for place, found in by_flow.hashes().items()
        if place.split("/")[1] in ("baseline", "dense", "onnx") and place.startswith("artifacts/")
    }
    for name in ("data", "artifacts"):
        shutil.rmtree(by_flow.root / name)
    printed = by_flow.run(sys.executable, "-m", "flows.restore", "--alias", "production", "--into", "back")
    assert "every hash is as recorded" in printed
    restored = json.loads((by_flow.root / "back/restored.json").read_text(encoding="utf-8"))
    assert {restored["sources"][place] for place in wanted if place.startswith("data/")} == {"DVC"}
    for place, found in wanted.items():
        assert sha256((by_flow.root / "back" / place).read_bytes()).hexdigest() == found, place
    assert (by_flow.root / "back/tasks/registry/restore.py").read_bytes() == (
        by_flow.root / "tasks/registry/restore.py"
    ).read_bytes()
