"""Four versions by the deployments, on real servers and a real worker: promoted, rolled back, cleaned up, restored."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.clone import Clone
from tests.live import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@t")
RESTORED = ("data", "artifacts/baseline", "artifacts/dense", "artifacts/onnx")

Change = Callable[[dict[str, Any]], object]


def settings_of(version: int) -> Change:
    """Settings of which each version's give a smaller model; from the second on, of other data."""

    def change(settings: dict[str, Any]) -> None:
        settings["data"]["kwargs"] = {"seed": min(version - 1, 1)}
        settings["baseline"]["recipe"]["epochs"] = 4
        settings["analyze"]["rates"] = [0.5]
        settings["prune"].update(
            target={"mac_reduction": 0.2 + 0.15 * version}, iterations=1, recipes=[], max_accuracy_drop=0.9
        )
        settings["promote"].update(max_accuracy_drop=0.9)
        settings["cleanup"] = {"keep_days": 0}

    return change


def hashes(clone: Clone, below: Path) -> dict[str, str]:
    files = [path for folder in RESTORED for path in (below / folder).rglob("*") if path.is_file()]
    files += [below / "params.yaml", below / "own_project.py", *(below / "tasks").glob("*.py")]
    return {path.relative_to(below).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def done(here: Served, name: str, count: int = 1) -> None:
    ended = here.wait_for(name, count)
    assert [run["state_type"] for run in ended] == ["COMPLETED"] * count, (
        name,
        [run["state"]["message"] for run in ended],
    )


def ask_for(here: Served, name: str, **parameters: Any) -> None:
    status, answer = here.start(name, parameters=parameters)
    assert status == 201, answer
    done(here, name)


def in_production(clone: Clone) -> list[Any]:
    return clone.recorded("select version from registered_model_aliases where alias = 'production'")


def test_version_1_comes_back_after_three_more_a_rollback_and_a_cleanup(
    new_clone: Callable[[], Clone], project_writer: Callable[..., Path]
) -> None:
    clone = new_clone()
    wanted: dict[str, str] = {}
    with served(clone) as here:
        for version in range(1, 5):
            project_writer(clone.root, settings_of(version))
            clone.run("git", "add", "-A")
            clone.run("git", *IDENTITY, "commit", "-qm", f"settings of version {version}")
            here.start("compress")
            done(here, "compress", version)
            done(here, "promote", version)  # by the event that the candidate was registered
            assert in_production(clone) == [(version,)]
            if version == 1:
                wanted = hashes(clone, clone.root)
        clone.run("git", "add", "-A")
        clone.run("git", *IDENTITY, "commit", "-qm", "results")

        ask_for(here, "rollback")
        assert in_production(clone) == [(3,)]

        trial = clone.root / "trials/old/params.yaml"
        trial.parent.mkdir(parents=True)
        trial.write_text("{}", encoding="utf-8")
        ask_for(here, "cleanup", cache=True)
        assert not trial.exists()
        _, left = here.ask("flow_runs/filter", {})
        ended = [run["state_type"] for run in left if run["state_type"] != "SCHEDULED"]
        assert ended == ["COMPLETED"], "its own run alone is left, and what the schedules will start"
        assert clone.recorded("select count(*) from model_versions") == [(4,)]

        ask_for(here, "restore", version=1)
    back = clone.root / "restored/version-1"
    assert hashes(clone, back) == wanted
    sources = json.loads((back / "restored.json").read_text(encoding="utf-8"))["sources"]
    assert sources["data/train.safetensors"] == "DVC"
    lines = (clone.root / "promotions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["decision"] for line in lines] == ["promoted"] * 4 + ["rolled back"]
