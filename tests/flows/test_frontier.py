from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flows import stage_runner, stages
from flows.frontier import frontier
from flows.stage_runner import Run, Work, unless_current
from pruning.errors import WorkspaceError
from tasks.fan_out import Part, compute
from tasks.registry.mlflow_client import open_store
from tasks.stage_table import NAMES, body_of
from tests.shop import Shop


def test_a_frontier_that_another_run_holds_is_left_as_it_is(write_params: Callable[..., Path]) -> None:
    write_params(None)
    Path("frontier").mkdir()
    with FileLock("frontier/.lock"), pytest.raises(WorkspaceError, match="in use by another run"):
        frontier()
    assert [path.name for path in Path("frontier").iterdir()] == [".lock"]


@pytest.mark.slow
def test_targets_share_what_no_target_shapes_and_leave_the_workspace_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [{"mac_reduction": 0.3}, {"mac_reduction": 0.6}]
    shop.change(lambda settings: settings.update(frontier={"targets": targets}))
    before = {path: path.read_bytes() for path in Path("artifacts").rglob("*") if path.is_file()}
    calls: list[tuple[str, str]] = []

    def watched(run: Run, name: str, work: Work) -> None:
        calls.append((name, str(run.workspace.root)))
        assert run.versions is None
        unless_current(run, name, work)

    monkeypatch.setattr(stages, "unless_current", watched)
    monkeypatch.setattr(stage_runner, "unless_current", watched)
    frontier()
    one, two = "frontier/mac_reduction-0.3", "frontier/mac_reduction-0.6"
    own = [name for name in NAMES if name not in ("prepare", "baseline", "analyze", "profile")]
    assert [call for call in calls if call[1] != "frontier/shared"] == [(n, w) for w in (one, two) for n in own]
    assert {name for name, place in calls if place == "frontier/shared"} <= {"profile"}
    assert {path: path.read_bytes() for path in before} == before
    points = json.loads(Path("frontier/frontier.json").read_text(encoding="utf-8"))["points"]
    assert [point["name"] for point in points] == ["baseline", "mac_reduction-0.3", "mac_reduction-0.6"]
    assert points[1]["costs"]["MACs"] > points[2]["costs"]["MACs"]

    calls.clear()
    Path(two, "report", "stage.json").unlink()
    frontier()
    assert calls == [("report", two)], "what had finished is not run again"


@pytest.mark.slow
def test_targets_side_by_side_give_the_same_models_and_are_registered_in_their_order(shop: Shop) -> None:
    targets = [{"mac_reduction": 0.3}, {"mac_reduction": 0.6}]
    shop.change(lambda settings: settings.update(frontier={"targets": targets}))

    def made() -> dict[str, bytes]:
        folders = [folder for name in ("iterations", "dense", "onnx") for folder in Path("frontier").glob(f"*/{name}")]
        return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}

    frontier()
    expected = made()
    shutil.rmtree("frontier")
    shop.change(lambda settings: settings.update(machine={"processes": 2}))
    requests = list[str]()

    def once(name: str) -> Callable[..., Any]:
        assert name != "prune", "its workers have done that"
        return body_of(name)

    with pytest.MonkeyPatch.context() as patch:

        def watched(parts: Sequence[Part], *given: Any) -> None:
            requests.extend(part.name for part in parts)
            compute(parts, *given)
            patch.setattr(stages, "body_of", once)

        patch.setattr("flows.frontier.compute", watched)
        frontier()
    assert requests == ["mac_reduction-0.3", "mac_reduction-0.6"]
    assert len(expected) > 10
    assert made() == expected
    assert not Path("frontier/.parts").exists()
    name, client = f"{shop.settings.tracking.model_name}-frontier", open_store(shop.settings.tracking.uri)
    runs = [client.get_run(str(one.run_id)) for one in client.search_model_versions(f"name='{name}'")]
    assert len(runs) == 2, "each model is one version, whichever way it was made"
