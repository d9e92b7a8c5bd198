from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from flows import stage_runner, stages
from flows.frontier import frontier
from flows.stage_runner import Run, Work, unless_current
from pruning.errors import WorkspaceError
from tasks.stage_table import NAMES
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
