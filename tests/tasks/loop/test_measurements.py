"""What is measured shapes the loop where its allocation or its target asks for it, and nowhere else."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.config.schema import Settings, load
from tasks.fingerprint import fingerprint, trajectory_fingerprint
from tasks.loop.measurements import read_curves, read_profile
from tasks.loop.targets import clock_warning
from tasks.stage_table import find_stage
from tasks.workspace import seal
from tests.shop import Shop
from tests.tasks.test_pipeline import BEFORE_THE_LOOP, Project, made, make

pytestmark = pytest.mark.thorough

Writer = Callable[..., Path]
Change = Callable[[dict[str, Any]], object]


def _plain(settings: dict[str, Any]) -> None:
    settings["profile"] = {"batch_sizes": [1]}
    settings["prune"].update(allocation={"strategy": "global"}, round_to="auto", iterations=1, max_accuracy_drop=0.9)
    settings["prune"]["recipes"] = settings["prune"]["recipes"][:1]


def _by_latency(settings: dict[str, Any]) -> None:
    _plain(settings)
    settings["prune"]["target"] = {"mac_reduction": 0.3, "latency_reduction": 0.3}


def _by_curves(settings: dict[str, Any]) -> None:
    _plain(settings)
    settings["prune"]["allocation"] = {"strategy": "sensitivity"}


def _for_the_report(settings: dict[str, Any]) -> None:
    _plain(settings)
    settings["analyze"]["for_report"] = True


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, project_writer: Writer) -> Path:
    """A project that is profiled, and whose curves are measured for the report alone."""
    return made(tmp_path_factory.mktemp("measured"), project_writer, BEFORE_THE_LOOP, _for_the_report).root


@pytest.fixture
def project_of(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Writer
) -> Callable[[Change], Project]:
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return lambda change: make(tmp_path, project_writer, change)


def _slower(project: Project) -> None:
    """Let the profile say that every layer takes twice as long."""
    path = project.workspace.folder("profile") / "profile.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    for found in body["profiles"]:
        found["whole_ms"] *= 2
    path.write_text(json.dumps(body), encoding="utf-8")
    _seal(project, "profile")


def _seal(project: Project, *names: str) -> None:
    for name in names:
        stage = find_stage(name)
        seal(project.workspace.folder(stage.folder), fingerprint(stage, project.settings, project.workspace))


def _trajectory(project: Project) -> str:
    project.run("measurements")
    return trajectory_fingerprint(project.settings, project.workspace)


@pytest.mark.parametrize(("change", "depends"), [(_plain, False), (_by_latency, True)], ids=["MACs", "latency"])
def test_a_clock_shapes_the_loop_only_where_a_latency_is_asked_for(
    project_of: Callable[[Change], Project], change: Change, depends: bool
) -> None:
    project = project_of(change)
    before = _trajectory(project)
    _slower(project)
    assert (_trajectory(project) != before) is depends


@pytest.mark.parametrize(("change", "depends"), [(_plain, False), (_by_curves, True)], ids=["global", "sensitivity"])
def test_curves_shape_the_loop_only_where_the_allocation_asks_for_them(
    project_of: Callable[[Change], Project], change: Change, depends: bool
) -> None:
    project = project_of(change)
    before = _trajectory(project)
    other = project_of(lambda settings: (change(settings), settings["analyze"].update(rates=[0.5], for_report=True)))
    other.run("analyze")
    assert (_trajectory(other) != before) is depends


def test_nothing_is_analysed_unless_allocation_or_report_asks(
    project_of: Callable[[Change], Project], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = project_of(_plain)
    assert not plain.settings.measures_curves
    with caplog.at_level(logging.INFO, logger="secateur"):
        plain.run("analyze")
    assert read_curves(plain.workspace, "analyze") == ()
    assert "no curves are measured: neither" in caplog.text
    report = project_of(_for_the_report)
    assert report.settings.measures_curves
    report.run("analyze")
    report.run("measurements")
    assert len(read_curves(report.workspace, "analyze")) == 2
    assert read_curves(report.workspace) == ()
    assert project_of(_by_curves).settings.measures_curves


def test_widths_are_those_of_a_table_whatever_was_profiled(project_of: Callable[[Change], Project]) -> None:
    """A profile that says that all widths take equally long would leave none to choose."""
    project = project_of(_plain)
    project.run("measurements")
    project.run("prune")
    written = project.bytes_of("iterations")
    path = project.workspace.folder("profile") / "profile.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    for surface in body["profiles"][0]["surfaces"].values():
        surface["ms"] = [[1.0] * len(surface["outputs"])] * len(surface["inputs"])
    path.write_text(json.dumps(body), encoding="utf-8")
    _seal(project, "profile")
    shutil.rmtree("artifacts/iterations")
    project.run("measurements")
    project.run("prune")
    assert project.bytes_of("iterations") == written
    assert read_profile(project.workspace).profiles == ()


def _warning(settings: Settings, project: Project) -> str:
    return clock_warning(settings.shaped_by_the_clock, read_profile(project.workspace, "profile")) or ""


def test_a_run_that_a_clock_shapes_says_so_and_the_report_repeats_it(
    project_of: Callable[[Change], Project], caplog: pytest.LogCaptureFixture
) -> None:
    assert _warning(project_of(_plain).settings, project_of(_plain)) == ""
    project = project_of(_by_latency)
    project.run("measurements")
    project.run("prune")
    assert (
        "depends on this machine's clock: the profile that decides the widths was measured by this run" in caplog.text
    )
    for name in ("transform", "export", "quantize", "benchmark", "report"):
        project.run(name)
    page = (project.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "depends on this machine&#x27;s clock" in page
    assert read_profile(project.workspace).profiles
    shutil.copyfile("artifacts/profile/profile.json", "committed.json")

    def committed(settings: dict[str, Any]) -> None:
        _by_latency(settings)
        settings["profile"]["path"] = "committed.json"

    asked = project_of(committed)
    assert _warning(asked.settings, asked) == ""
    before = trajectory_fingerprint(project.settings, project.workspace)
    asked.run("profile")
    assert _trajectory(asked) == before, "the same profile, named: nothing begins anew"

    def corrected(settings: dict[str, Any]) -> None:
        committed(settings)
        settings["prune"]["measure_latency"] = True

    asked = project_of(corrected)
    assert "correct the next ones by their measured latency" in _warning(asked.settings, asked)


def test_another_machine_makes_nothing_stale(
    project_of: Callable[[Change], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC doesn't know what machine it runs on, so no fingerprint may."""
    project = project_of(_plain)
    before = fingerprint(find_stage("profile"), project.settings, project.workspace)
    monkeypatch.setattr("pruning.latency.runner.cpu_name", lambda: "another")
    monkeypatch.setattr("tasks.fingerprint.cpu_name", lambda: "another", raising=False)
    assert fingerprint(find_stage("profile"), load(Path("params.yaml")), project.workspace) == before


def test_a_result_without_curves_is_registered(shop: Shop) -> None:
    shop.change(lambda settings: settings["prune"].update(allocation={"strategy": "global"}, recipes=[]))
    shop.run()
    assert not Path("artifacts/report/sensitivity.png").exists()
    assert shop.register() == "2"
