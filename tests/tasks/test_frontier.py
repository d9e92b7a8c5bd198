from __future__ import annotations

import json
from pathlib import Path

import pytest

from pruning.errors import SettingsError, WorkspaceError
from pruning.metrics import ACCURACY
from tasks import frontier as subject
from tasks.config.schema import load
from tasks.config.target_schema import Target
from tasks.frontier import (
    BASELINE,
    MACS,
    Point,
    as_text,
    mark_dominated,
    name_of,
    read_points,
    take_over,
    write_frontier,
)
from tasks.stage_table import find_stage
from tasks.workspace import Workspace, contents
from tests.shop import Shop

LATENCY = "latency, batch 1"


def point(name: str, accuracy: float, macs: float, latency: float) -> Point:
    return Point(
        name, accuracy, {MACS: macs, LATENCY: latency}, int(1000 * macs), {LATENCY: (latency, latency, latency)}, {}, ""
    )


POINTS = [
    point(BASELINE, 0.97, 1.0, 1.0),
    point("a", 0.97, 0.7, 1.1),
    point("b", 0.95, 0.5, 0.6),
    point("c", 0.94, 0.3, 0.6),
    point("d", 0.94, 0.3, 0.5),
]


def test_dominated_is_who_is_beaten_in_one_and_not_better_in_the_other() -> None:
    found = {one.name: one.dominated for one in mark_dominated(POINTS)}
    assert found == {
        BASELINE: {MACS: True, LATENCY: False},
        "a": {MACS: False, LATENCY: True},
        "b": {MACS: False, LATENCY: False},
        "c": {MACS: False, LATENCY: True},
        "d": {MACS: False, LATENCY: False},
    }


def test_points_of_equal_figures_do_not_dominate_each_other() -> None:
    same = [point("a", 0.9, 0.5, 0.5), point("b", 0.9, 0.5, 0.5)]
    assert not any(any(one.dominated.values()) for one in mark_dominated(same))


def test_page_and_table_name_every_target_and_star_the_dominated(tmp_path: Path) -> None:
    write_frontier(mark_dominated(POINTS), "net <on> data", ACCURACY, tmp_path)
    text = (tmp_path / "frontier.md").read_text(encoding="utf-8")
    assert "| 1 | a | 97.00% | 70.0% | 110.0% *, 1.100 ms [1.10, 1.10] |" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.count("*") == 3
    page = (tmp_path / "frontier.html").read_text(encoding="utf-8")
    assert "net &lt;on&gt; data" in page
    assert page.count("<svg") == len(POINTS[0].costs), (
        "a plot for each cost, so that a telephone shows them at full size"
    )
    assert all(f'<td data-label="target">{one.name}</td>' in page for one in POINTS)
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "frontier.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in found["points"]] == [one.name for one in POINTS]


def test_the_terminal_shows_a_line_for_each_target_in_80_columns() -> None:
    lines = as_text(mark_dominated(POINTS), ACCURACY).splitlines()
    assert lines[0].split("  ")[-1] == "ended because"
    assert "a         97.00%    70.0%     110.0% *" in lines[2]
    assert max(map(len, lines)) <= 80


def test_a_target_has_a_name_that_can_be_a_folder() -> None:
    assert name_of(Target(mac_reduction=0.85)) == "mac_reduction-0.85"
    assert name_of(Target(size_bytes=100000)) == "size_bytes-100000"
    assert name_of(Target.model_validate({"pattern": "2:4"})) == "pattern-2-4"
    assert name_of(Target(mac_reduction=0.5, latency_ms=1.5)) == "mac_reduction-0.5+latency_ms-1.5"


def test_settings_of_a_target_are_those_of_the_file_but_for_target_and_registered_name(shop: Shop) -> None:
    own = Workspace(Path("frontier/one"))
    written = load(subject.write_settings(Path("params.yaml"), Target(mac_reduction=0.4), own))
    before = shop.settings
    assert written.prune == before.prune.model_copy(update={"target": Target(mac_reduction=0.4)})
    assert written.tracking.model_name == "small-frontier"
    assert written.analyze == before.analyze
    with pytest.raises(SettingsError, match="the target of kind 'structured'"):
        subject.write_settings(Path("params.yaml"), Target(weight_sparsity=0.5), own)


def test_what_targets_share_is_taken_over_where_it_is_current(shop: Shop) -> None:
    own, settings = Workspace(Path("frontier/shared")), shop.settings
    before = {path: path.stat().st_mtime_ns for path in Path("artifacts").rglob("*")}
    baseline = find_stage("baseline")
    assert not take_over(baseline, settings, shop.workspace, own), "data first: it is made from them"
    for name in ("prepare", "baseline", "analyze"):
        stage = find_stage(name)
        assert take_over(stage, settings, shop.workspace, own)
        made = contents(own.folder(stage.folder), name)
        assert made == contents(shop.workspace.folder(stage.folder), name)
    assert take_over(baseline, settings, Workspace(Path("nothing")), own), "it is there"
    shop.change(lambda changed: changed["run"].update(seed=1))
    assert not take_over(baseline, shop.settings, shop.workspace, own), "made by other settings"
    assert {path: path.stat().st_mtime_ns for path in Path("artifacts").rglob("*")} == before


def test_target_that_has_not_finished_is_said(shop: Shop) -> None:
    with pytest.raises(WorkspaceError, match=r"run `secateur run report` first"):
        read_points({"a": Workspace(Path("frontier/a"))})
    first, second = read_points({"a": shop.workspace})
    assert (first.name, first.costs[MACS], second.name) == (BASELINE, 1.0, "a")
    assert second.costs[MACS] < 0.5
